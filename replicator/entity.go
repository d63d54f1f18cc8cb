package replicator

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
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

// prepare makes collections, indexes and views that aren't there, and returns
// the identity of every base collection.
func prepare(ctx context.Context, db *mongo.Database) (map[string]string, error) {
	for _, e := range EntityCollections {
		if err := db.CreateCollection(ctx, e.Base); err != nil && !hasCode(err, codeNamespaceExists) {
			return nil, fmt.Errorf("create collection %s: %w", e.Base, err)
		}
		var models []mongo.IndexModel
		for _, keys := range e.indexes {
			models = append(models, mongo.IndexModel{Keys: keys})
		}
		if _, err := db.Collection(e.Base).Indexes().CreateMany(ctx, models); err != nil {
			return nil, fmt.Errorf("create the indexes of %s: %w", e.Base, err)
		}
		if err := db.CreateView(ctx, e.View, e.Base, live); err != nil && !hasCode(err, codeNamespaceExists) {
			return nil, fmt.Errorf("create view %s: %w", e.View, err)
		}
	}
	if err := db.CreateCollection(ctx, positionsCollection); err != nil && !hasCode(err, codeNamespaceExists) {
		return nil, fmt.Errorf("create collection %s: %w", positionsCollection, err)
	}
	return identities(ctx, db)
}

// identities returns which collections there are, by their UUID: one that was
// dropped and came back is another. Where a server has no UUIDs, a collection
// that is there has the identity "there".
func identities(ctx context.Context, db *mongo.Database) (map[string]string, error) {
	all, err := db.ListCollectionSpecifications(ctx, bson.D{}, options.ListCollections())
	if err != nil {
		return nil, fmt.Errorf("list the collections: %w", err)
	}
	found := map[string]string{}
	for _, c := range all {
		found[c.Name] = "there"
		if c.UUID != nil {
			found[c.Name] = fmt.Sprintf("%x", c.UUID.Data)
		}
	}
	return found, nil
}
