package mongofake

import (
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// call is one command while it runs.
type call struct {
	server     *Server
	name       string
	db, coll   string
	body       bson.D
	documents  map[string][]bson.Raw
	now        time.Time
	connection int32
	legacy     bool
	fault      *Fault
}

// target is the collection that the command is about, for faults.
func (c *call) target() string {
	switch c.name {
	case "getMore":
		name, _ := field[string](c.body, "collection")
		return name
	case "renameCollection":
		_, name, _ := strings.Cut(c.coll, ".")
		return name
	}
	return c.coll
}

func (c *call) namespace() namespace { return namespace{c.db, c.coll} }

// command is a handler and the fields that it takes.
type command struct {
	run func(*call) (bson.D, *serverError)
	// fields are acted upon or have no effect that could be seen.
	fields string
	// refused are MongoDB's fields that are not supported here; they may be
	// there if they are false or empty.
	refused string
	// anywhere is set if the command's value isn't a collection.
	anywhere bool
	// lenient takes any further field: a client's description of itself.
	lenient bool
}

// commonFields come with every command. What is read of them is checked in
// dispatch; $clusterTime, sessions and the like change nothing on a standalone.
var commonFields = fieldSet("$db lsid $clusterTime $readPreference comment maxTimeMS writeConcern readConcern txnNumber autocommit startTransaction apiVersion apiStrict apiDeprecationErrors")

func fieldSet(names string) map[string]bool {
	set := map[string]bool{}
	for _, name := range strings.Fields(names) {
		set[name] = true
	}
	return set
}

// compiledCommand has its field lists as sets.
type compiledCommand struct {
	command
	taken, refusedSet map[string]bool
}

var commands = compileCommands()

func compileCommands() map[string]*compiledCommand {
	all := map[string]*compiledCommand{}
	for _, group := range []map[string]command{writeCommands, readCommands, adminCommands} {
		for name, c := range group {
			all[name] = &compiledCommand{c, fieldSet(c.fields), fieldSet(c.refused)}
		}
	}
	return all
}

func (c *call) dispatch() (bson.D, *serverError) {
	cmd := commands[c.name]
	if cmd == nil {
		return nil, fail(codeCommandNotFound, "no such command: '%s'", c.name)
	}
	if c.legacy && c.name != "hello" && !strings.EqualFold(c.name, "ismaster") {
		return nil, fail(352, "Unsupported OP_QUERY command: %s. The client driver may require an upgrade.", c.name)
	}
	if c.db == "" {
		return nil, fail(codeMissingField, "OP_MSG requests require a $db argument")
	}
	if err := checkDatabase(c.db); err != nil {
		return nil, err
	}
	if !cmd.anywhere && c.coll == "" {
		return nil, fail(codeInvalidNamespace, "Invalid namespace specified '%s.': collection name has invalid type %s", c.db, typeName(c.body[0].Value))
	}
	for _, e := range c.body[1:] {
		switch {
		case cmd.lenient || cmd.taken[e.Key]:
		case commonFields[e.Key]:
			if err := c.checkCommon(e); err != nil {
				return nil, err
			}
		case cmd.refusedSet[e.Key]:
			if !neutral(e) {
				return nil, unsupported("the option '%s' of %s", e.Key, c.name)
			}
		default:
			return nil, fail(codeUnknownField, "BSON field '%s.%s' is an unknown field.", c.name, e.Key)
		}
	}
	return cmd.run(c)
}

// neutral says whether an option has the value that it has when left out.
func neutral(e bson.E) bool {
	switch v := e.Value.(type) {
	case bson.D:
		if e.Key == "collation" && len(v) == 1 && v[0].Key == "locale" && v[0].Value == "simple" {
			return true
		}
		return len(v) == 0
	case bson.A:
		return len(v) == 0
	case string:
		return v == ""
	}
	return !truthy(e.Value)
}

func (c *call) checkCommon(e bson.E) *serverError {
	switch e.Key {
	case "txnNumber", "autocommit", "startTransaction":
		return fail(codeIllegalOperation, "Transaction numbers are only allowed on a replica set member or mongos")
	case "apiVersion":
		if e.Value != "1" {
			return fail(322, "API version must be \"1\"")
		}
	case "writeConcern":
		return checkWriteConcern(e.Value)
	case "readConcern":
		d, _ := e.Value.(bson.D)
		switch level, _ := lookup(d, "level"); level {
		case nil, "local", "available", "majority":
		default:
			return fail(codeNotAReplicaSet, "node needs to be a replica set member to use read concern level %s", shellText(level))
		}
	}
	return nil
}

// checkWriteConcern accepts what a standalone accepts: one server, by number or
// as the majority (manual page "Write Concern", "Standalone").
func checkWriteConcern(v any) *serverError {
	d, ok := v.(bson.D)
	if !ok {
		return fail(codeTypeMismatch, "BSON field 'writeConcern' is the wrong type '%s', expected type 'object'", typeName(v))
	}
	w, ok := lookup(d, "w")
	if !ok || w == "majority" {
		return nil
	}
	if n, ok := integer(w); ok {
		if n < 0 {
			return fail(codeFailedToParse, "w has to be a non-negative number and not greater than 50; found: %d", n)
		}
		if n > 1 {
			return fail(codeBadValue, "cannot use 'w' > 1 when a host is not replicated")
		}
		return nil
	}
	if mode, ok := w.(string); ok {
		return fail(codeBadValue, "cannot use non-majority 'w' mode \"%s\" when a host is not a member of a replica set", mode)
	}
	return fail(codeFailedToParse, "w has to be a number, string, or object; found: %s", typeName(w))
}

func field[T any](d bson.D, key string) (T, bool) {
	v, _ := lookup(d, key)
	t, ok := v.(T)
	return t, ok
}

// options reads the fields of a command or of one operation, and keeps the
// first error.
type options struct {
	of  string
	d   bson.D
	err *serverError
}

func (c *call) options() *options { return &options{of: c.name, d: c.body} }

func (o *options) fail(err *serverError) {
	if o.err == nil {
		o.err = err
	}
}

func (o *options) wrongType(key string, v any, want string) {
	o.fail(fail(codeTypeMismatch, "BSON field '%s.%s' is the wrong type '%s', expected type '%s'", o.of, key, typeName(v), want))
}

// document is nil if the field is not there.
func (o *options) document(key string) bson.D {
	v, _ := lookup(o.d, key)
	d, ok := v.(bson.D)
	if !ok && v != nil {
		o.wrongType(key, v, "object")
	}
	return d
}

func (o *options) array(key string) bson.A {
	v, _ := lookup(o.d, key)
	a, ok := v.(bson.A)
	if !ok && v != nil {
		o.wrongType(key, v, "array")
	}
	return a
}

func (o *options) text(key string) string {
	v, ok := lookup(o.d, key)
	s, isText := v.(string)
	switch {
	case !ok:
		o.fail(fail(codeMissingField, "BSON field '%s.%s' is missing but a required field", o.of, key))
	case !isText:
		o.wrongType(key, v, "string")
	}
	return s
}

func (o *options) boolean(key string, absent bool) bool {
	v, ok := lookup(o.d, key)
	if !ok || v == nil {
		return absent
	}
	switch v.(type) {
	case bool, int32, int64, float64:
		return truthy(v)
	}
	o.wrongType(key, v, "bool")
	return false
}

// count is a number that must not be negative.
func (o *options) count(key string, absent int64) int64 {
	v, ok := lookup(o.d, key)
	if !ok || v == nil {
		return absent
	}
	n, ok := integer(v)
	switch {
	case !ok:
		o.wrongType(key, v, "long")
	case n < 0:
		o.fail(fail(51024, "BSON field '%s' value must be >= 0, actual value '%d'", key, n))
	}
	return n
}
