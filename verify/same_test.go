package verify

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

func TestDocumentsAreTheSame(t *testing.T) {
	t.Parallel()
	text := func(name, value string) []byte { return bsoncore.AppendStringElement(nil, name, value) }
	document := func(elements ...[]byte) []byte { return bsoncore.BuildDocument(nil, elements...) }
	array := func(elements ...[]byte) []byte {
		return bsoncore.AppendArrayElement(nil, "list", document(elements...))
	}
	nested := func(elements ...[]byte) []byte {
		return bsoncore.AppendDocumentElement(nil, "inner", document(elements...))
	}
	a, b, ab := text("a", "1"), text("b", "2"), document(text("a", "1"), text("b", "2"))
	for name, c := range map[string]struct {
		x, y []byte
		want bool
	}{
		"equal":                           {ab, ab, true},
		"in another order":                {ab, document(b, a), true},
		"nested, in another order":        {document(nested(a, b)), document(nested(b, a)), true},
		"one more":                        {ab, document(a, b, text("c", "3")), false},
		"one less":                        {ab, document(a), false},
		"a name twice":                    {ab, document(a, a), false},
		"a name twice, and all others":    {ab, document(a, b, b), false},
		"another type":                    {document(bsoncore.AppendInt64Element(nil, "n", 1)), document(bsoncore.AppendInt32Element(nil, "n", 1)), false},
		"another type, the same bytes":    {document(bsoncore.AppendSymbolElement(nil, "a", "1")), document(a), false},
		"null and nothing":                {document(bsoncore.AppendNullElement(nil, "a")), document(), false},
		"an array and a document":         {document(array(text("0", "x"))), document(bsoncore.AppendDocumentElement(nil, "list", document(text("0", "x")))), false},
		"an array in another order":       {document(array(text("0", "x"), text("1", "y"))), document(array(text("1", "y"), text("0", "x"))), false},
		"an array whose names are others": {document(array(text("0", "x"), text("1", "y"))), document(array(text("", "x"), text("", "y"))), false},
	} {
		require.Equal(t, c.want, same(bson.Raw(c.x), bson.Raw(c.y)), name)
		require.Equal(t, c.want, same(bson.Raw(c.y), bson.Raw(c.x)), name)
	}
}
