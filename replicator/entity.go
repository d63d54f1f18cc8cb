package replicator

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/mongodb"
)

// EntityCollection is where the entities of one aggregate type are kept.
type EntityCollection struct {
	Aggregate string // the aggregate type
	Base      string // the collection: live documents and tombstones
	View      string // what people read: live documents only

	indexes []bson.D
}

// EntityCollections lists the replica's collections.
var EntityCollections = []EntityCollection{
	{
		Aggregate: domain.AggregateCustomer, Base: "_customers", View: "customers",
		indexes: []bson.D{{{Key: "email", Value: 1}}, {{Key: "status", Value: 1}}},
	},
	{
		Aggregate: domain.AggregateOrder, Base: "_orders", View: "orders",
		indexes: []bson.D{
			{{Key: "customer_id", Value: 1}, {Key: "created_at", Value: -1}},
			{{Key: "status", Value: 1}, {Key: "created_at", Value: -1}},
		},
	},
}

// live is what a view shows: a tombstone has a deleted_at, an entity has none.
var live = mongo.Pipeline{{{Key: "$match", Value: bson.D{{Key: "deleted_at", Value: bson.D{{Key: "$exists", Value: false}}}}}}}

const positionsCollection = "_positions"

// prepare makes collections, indexes and views that aren't there.
func prepare(ctx context.Context, db *mongo.Database) error {
	for _, e := range EntityCollections {
		if err := e.create(ctx, db, e.Base); err != nil {
			return err
		}
		if err := db.CreateView(ctx, e.View, e.Base, live); err != nil && !mongodb.HasCode(err, mongodb.CodeNamespaceExists) {
			return fmt.Errorf("create view %s: %w", e.View, err)
		}
	}
	return nil
}

// create makes a collection like the base collection.
func (e EntityCollection) create(ctx context.Context, db *mongo.Database, name string) error {
	var models []mongo.IndexModel
	for _, keys := range e.indexes {
		models = append(models, mongo.IndexModel{Keys: keys})
	}
	return mongodb.Create(ctx, db, name, models...)
}
