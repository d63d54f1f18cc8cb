package verify

import (
	"reflect"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"outflow/domain"
)

// known returns a document without the fields that this version of outflow
// doesn't know.
func known(doc bson.Raw, aggregateType string) bson.Raw {
	names := map[string]bool{"_id": true, "deleted_at": true}
	switch aggregateType {
	case domain.AggregateCustomer:
		members(reflect.TypeFor[domain.Customer](), names)
	case domain.AggregateOrder:
		members(reflect.TypeFor[domain.Order](), names)
	}
	elements, err := doc.Elements()
	if err != nil {
		return doc
	}
	at, b := bsoncore.AppendDocumentStart(nil)
	for _, e := range elements {
		if names[e.Key()] {
			b = append(b, e...)
		}
	}
	b = append(b, 0)
	return bson.Raw(bsoncore.UpdateLength(b, at, int32(len(b))))
}

// members adds the names of the members of an entity's JSON.
func members(entity reflect.Type, names map[string]bool) {
	for i := range entity.NumField() {
		f := entity.Field(i)
		if f.Anonymous {
			members(f.Type, names)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = true
	}
}
