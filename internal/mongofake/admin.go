package mongofake

import (
	"os"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// version is the MongoDB whose behaviour this package follows; wireVersion is
// the one that goes with it.
const (
	version     = "7.0.0"
	wireVersion = 21
)

var adminCommands = map[string]command{
	"hello":            {run: (*call).hello, anywhere: true, lenient: true},
	"isMaster":         {run: (*call).hello, anywhere: true, lenient: true},
	"ismaster":         {run: (*call).hello, anywhere: true, lenient: true},
	"ping":             {run: func(*call) (bson.D, *serverError) { return nil, nil }, anywhere: true},
	"endSessions":      {run: func(*call) (bson.D, *serverError) { return nil, nil }, anywhere: true},
	"buildInfo":        {run: (*call).buildInfo, anywhere: true},
	"buildinfo":        {run: (*call).buildInfo, anywhere: true},
	"connectionStatus": {run: (*call).connectionStatus, fields: "showPrivileges", anywhere: true},
	"getParameter":     {run: (*call).getParameter, fields: "featureCompatibilityVersion", anywhere: true},
	"serverStatus":     {run: (*call).serverStatus, anywhere: true, lenient: true},
	"whatsmyuri":       {run: (*call).whatsMyURI, anywhere: true},
	"listDatabases":    {run: (*call).listDatabases, fields: "filter nameOnly authorizedDatabases", anywhere: true},
	"listCollections":  {run: (*call).listCollections, fields: "filter nameOnly authorizedCollections cursor", anywhere: true},
	"create": {
		run:     (*call).create,
		fields:  "viewOn pipeline autoIndexId idIndex",
		refused: "capped size max timeseries expireAfterSeconds clusteredIndex changeStreamPreAndPostImages storageEngine validator validationLevel validationAction indexOptionDefaults collation encryptedFields temp",
	},
	"collMod": {
		run:     (*call).collMod,
		fields:  "viewOn pipeline",
		refused: "index validator validationLevel validationAction changeStreamPreAndPostImages expireAfterSeconds cappedSize cappedMax dryRun",
	},
	"drop":             {run: (*call).drop},
	"dropDatabase":     {run: (*call).dropDatabase, anywhere: true},
	"renameCollection": {run: (*call).renameCollection, fields: "to dropTarget", anywhere: true},
	"createIndexes":    {run: (*call).createIndexes, fields: "indexes commitQuorum ignoreUnknownIndexOptions"},
	"listIndexes":      {run: (*call).listIndexes, fields: "cursor", refused: "includeBuildUUIDs includeIndexBuildInfo"},
	"dropIndexes":      {run: (*call).dropIndexes, fields: "index"},
	"deleteIndexes":    {run: (*call).dropIndexes, fields: "index"},
}

// hello describes a standalone. Drivers therefore send no transaction numbers,
// and retry no writes of their own accord.
func (c *call) hello() (bson.D, *serverError) {
	d := doc(
		"helloOk", true, "isWritablePrimary", true,
		"maxBsonObjectSize", int32(maxDocument), "maxMessageSizeBytes", int32(maxMessage), "maxWriteBatchSize", int32(maxBatch),
		"localTime", bson.NewDateTimeFromTime(c.now), "logicalSessionTimeoutMinutes", int32(30), "connectionId", c.connection,
		"minWireVersion", int32(0), "maxWireVersion", int32(wireVersion), "readOnly", false,
	)
	if c.name != "hello" {
		d[1].Key = "ismaster"
	}
	return d, nil
}

func (c *call) buildInfo() (bson.D, *serverError) {
	return doc(
		"version", version, "gitVersion", "mongofake", "modules", bson.A{}, "allocator", "go", "javascriptEngine", "none",
		"versionArray", bson.A{int32(7), int32(0), int32(0), int32(0)}, "bits", int32(64), "debug", false,
		"maxBsonObjectSize", int32(maxDocument), "storageEngines", bson.A{"memory"},
	), nil
}

func (c *call) connectionStatus() (bson.D, *serverError) {
	return doc("authInfo", doc("authenticatedUsers", bson.A{}, "authenticatedUserRoles", bson.A{}, "authenticatedUserPrivileges", bson.A{})), nil
}

func (c *call) getParameter() (bson.D, *serverError) {
	if o := c.options(); !o.boolean("featureCompatibilityVersion", false) {
		return nil, unsupported("server parameters other than featureCompatibilityVersion")
	}
	return doc("featureCompatibilityVersion", doc("version", "7.0")), nil
}

func (c *call) serverStatus() (bson.D, *serverError) {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	uptime := c.now.Sub(c.server.started)
	return doc(
		"host", host, "version", version, "process", "mongofake", "pid", int64(os.Getpid()),
		"uptime", uptime.Seconds(), "uptimeMillis", uptime.Milliseconds(), "localTime", bson.NewDateTimeFromTime(c.now),
	), nil
}

func (c *call) whatsMyURI() (bson.D, *serverError) {
	return doc("you", c.server.Addr().String()), nil
}

// onAdmin refuses commands that MongoDB runs against admin alone.
func (c *call) onAdmin() *serverError {
	if c.db != "admin" {
		return fail(codeUnauthorized, "%s may only be run against the admin database.", c.name)
	}
	return nil
}

func (c *call) listDatabases() (bson.D, *serverError) {
	if err := c.onAdmin(); err != nil {
		return nil, err
	}
	o := c.options()
	filter, nameOnly := o.document("filter"), o.boolean("nameOnly", false)
	if o.err != nil {
		return nil, o.err
	}
	match, err := compileQuery(filter)
	if err != nil {
		return nil, err
	}
	list, total := bson.A{}, int64(0)
	for _, d := range c.server.catalog.databases() {
		if !match(d) {
			continue
		}
		size, _ := field[int64](d, "sizeOnDisk")
		total += size
		if nameOnly {
			d = d[:1]
		}
		list = append(list, d)
	}
	if nameOnly {
		return doc("databases", list), nil
	}
	return doc("databases", list, "totalSize", total, "totalSizeMb", total>>20), nil
}

func (c *call) listCollections() (bson.D, *serverError) {
	o := c.options()
	filter, nameOnly, size := o.document("filter"), o.boolean("nameOnly", false), o.cursorSize()
	if o.err != nil {
		return nil, o.err
	}
	match, err := compileQuery(filter)
	if err != nil {
		return nil, err
	}
	cur := &cursor{ns: namespace{c.db, "$cmd.listCollections"}}
	for _, d := range c.server.catalog.list(c.db) {
		if !match(d) {
			continue
		}
		if nameOnly {
			d = d[:2]
		}
		cur.docs = append(cur.docs, &document{fields: d, raw: encode(d)})
	}
	return c.server.cursors.first(cur, size, false, c.now)
}

// cursorSize reads {cursor: {batchSize: n}}.
func (o *options) cursorSize() int64 {
	inner := &options{of: o.of + ".cursor", d: o.document("cursor")}
	size := inner.count("batchSize", defaultFirstBatch)
	if inner.err != nil {
		o.fail(inner.err)
	}
	return size
}

// parseView reads viewOn and pipeline; nil if there is neither.
func (c *call) parseView() (*view, *serverError) {
	_, on := lookup(c.body, "viewOn")
	_, piped := lookup(c.body, "pipeline")
	if !on && !piped {
		return nil, nil
	}
	if !on {
		return nil, fail(codeInvalidOptions, "'pipeline' requires 'viewOn' to also be specified")
	}
	o := c.options()
	v := &view{on: o.text("viewOn"), pipeline: o.array("pipeline")}
	if o.err != nil {
		return nil, o.err
	}
	if v.on == "" {
		return nil, fail(codeBadValue, "'viewOn' cannot be empty")
	}
	if v.pipeline == nil {
		v.pipeline = bson.A{}
	}
	if len(v.pipeline) == 0 {
		return v, nil
	}
	stage, _ := v.pipeline[0].(bson.D)
	if len(v.pipeline) > 1 || len(stage) != 1 || stage[0].Key != "$match" {
		return nil, unsupported("views of more than one $match")
	}
	var ok bool
	if v.match, ok = stage[0].Value.(bson.D); !ok {
		return nil, fail(15959, "the match filter must be an expression in an object")
	}
	_, err := compileQuery(v.match)
	return v, err
}

func (c *call) create() (bson.D, *serverError) {
	v, err := c.parseView()
	if err != nil {
		return nil, err
	}
	if v != nil {
		return nil, c.server.catalog.createView(c.namespace(), v)
	}
	return nil, c.server.catalog.create(c.namespace())
}

func (c *call) collMod() (bson.D, *serverError) {
	v, err := c.parseView()
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, unsupported("collMod of anything but a view")
	}
	return nil, c.server.catalog.changeView(c.namespace(), v)
}

func (c *call) drop() (bson.D, *serverError) {
	indexes, existed := c.server.catalog.drop(c.namespace())
	switch {
	case !existed: // fine since 7.0
		return nil, nil
	case indexes == 0:
		return doc("ns", c.namespace().String()), nil
	}
	return doc("nIndexesWas", int32(indexes), "ns", c.namespace().String()), nil
}

func (c *call) dropDatabase() (bson.D, *serverError) {
	if !c.server.catalog.dropDatabase(c.db) {
		return nil, nil
	}
	return doc("dropped", c.db), nil
}

func (c *call) renameCollection() (bson.D, *serverError) {
	if err := c.onAdmin(); err != nil {
		return nil, err
	}
	o := c.options()
	to, dropTarget := o.text("to"), o.boolean("dropTarget", false)
	if o.err != nil {
		return nil, o.err
	}
	source, err := parseNamespace(c.coll)
	if err != nil {
		return nil, err
	}
	target, err := parseNamespace(to)
	if err != nil {
		return nil, err
	}
	return nil, c.server.catalog.rename(source, target, dropTarget)
}

func parseNamespace(s string) (namespace, *serverError) {
	db, coll, ok := strings.Cut(s, ".")
	if !ok || db == "" || coll == "" {
		return namespace{}, fail(codeInvalidNamespace, "Invalid namespace specified '%s'", s)
	}
	return namespace{db, coll}, nil
}
