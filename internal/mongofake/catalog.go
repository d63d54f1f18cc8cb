package mongofake

import (
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"go.mongodb.org/mongo-driver/v2/bson"
)

// systemViews is where MongoDB keeps the definitions of a database's views. It
// shows up once there is one, and can be read.
const systemViews = "system.views"

// view is a stored query: one $match, or none, on a collection or another view.
type view struct {
	on       string
	pipeline bson.A
	match    bson.D
}

type database struct {
	collections map[string]*collection
	views       map[string]*view
}

// catalog knows what namespaces exist. Operations on documents hold mu for
// reading, so that creating, dropping and renaming never come in between.
type catalog struct {
	mu  sync.RWMutex
	dbs map[string]*database
}

func (c *catalog) collection(ns namespace) *collection {
	if db := c.dbs[ns.db]; db != nil {
		return db.collections[ns.coll]
	}
	return nil
}

func (c *catalog) view(ns namespace) *view {
	if db := c.dbs[ns.db]; db != nil {
		return db.views[ns.coll]
	}
	return nil
}

func (c *catalog) database(name string) *database {
	db := c.dbs[name]
	if db == nil {
		db = &database{collections: map[string]*collection{}, views: map[string]*view{}}
		c.dbs[name] = db
	}
	return db
}

// write runs fn on the collection, locked. If there is none it is made, or,
// unless create is set, fn gets nil.
func (c *catalog) write(ns namespace, create bool, fn func(*collection) *serverError) *serverError {
	for {
		c.mu.RLock()
		if c.view(ns) != nil {
			c.mu.RUnlock()
			return onView(ns)
		}
		if coll := c.collection(ns); coll != nil || !create {
			defer c.mu.RUnlock()
			if coll != nil {
				coll.mu.Lock()
				defer coll.mu.Unlock()
			}
			return fn(coll)
		}
		c.mu.RUnlock()
		if err := checkNamespace(ns); err != nil {
			return err
		}
		// Between the two locks others may create and drop it; then again.
		c.mu.Lock()
		if c.view(ns) == nil && c.collection(ns) == nil {
			c.add(ns)
		}
		c.mu.Unlock()
	}
}

func (c *catalog) add(ns namespace) *collection {
	id := uuid.New()
	coll := newCollection(ns, bson.Binary{Subtype: 4, Data: id[:]})
	c.database(ns.db).collections[ns.coll] = coll
	return coll
}

func onView(ns namespace) *serverError {
	return fail(codeNotOnView, "Namespace %s is a view, not a collection", ns)
}

// maxViewDepth is how many views may stand on each other.
const maxViewDepth = 20

// read runs fn on the collection behind ns, locked for reading, with what the
// views on the way ask for. The collection is nil if there is none.
func (c *catalog) read(ns namespace, fn func(coll *collection, viewMatch []bson.D) *serverError) *serverError {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var matches []bson.D
	for depth := 0; ; depth++ {
		v := c.view(ns)
		if v == nil {
			break
		}
		if depth == maxViewDepth {
			return fail(codeViewDepthLimit, "View depth limit exceeded; maximum depth is %d", maxViewDepth)
		}
		if len(v.match) > 0 {
			matches = append(matches, v.match)
		}
		ns.coll = v.on
	}
	coll := c.collection(ns)
	if coll == nil && ns.coll == systemViews {
		coll = c.viewsCollection(ns)
	}
	if coll != nil {
		coll.mu.RLock()
		defer coll.mu.RUnlock()
	}
	return fn(coll, matches)
}

// viewsCollection makes system.views out of the views that there are.
func (c *catalog) viewsCollection(ns namespace) *collection {
	db := c.dbs[ns.db]
	if db == nil || len(db.views) == 0 {
		return nil
	}
	coll := newCollection(ns, bson.Binary{Subtype: 4, Data: make([]byte, 16)})
	for name, v := range db.views {
		fields := doc("_id", ns.db+"."+name, "viewOn", v.on, "pipeline", v.pipeline)
		d := &document{key: keyOf(fields[0].Value), fields: fields, raw: encode(fields)}
		coll.byID[d.key] = d
		coll.ordered.Set(d.key, d)
	}
	return coll
}

// create makes an empty collection. Where there is one already, that is fine
// (manual page "create", since 7.0), a view is not.
func (c *catalog) create(ns namespace) *serverError {
	if err := checkNamespace(ns); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.view(ns); v != nil {
		return viewExists(ns, v)
	}
	if c.collection(ns) == nil {
		c.add(ns)
	}
	return nil
}

func viewExists(ns namespace, v *view) *serverError {
	return fail(codeNamespaceExists, "namespace %s already exists, but with different options: { viewOn: %q, pipeline: %s }", ns, v.on, shellText(v.pipeline))
}

func (c *catalog) createView(ns namespace, v *view) *serverError {
	if err := checkNamespace(ns); err != nil {
		return err
	}
	if err := checkNamespace(namespace{ns.db, v.on}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.view(ns); old != nil {
		if old.on == v.on && keyOf(old.pipeline) == keyOf(v.pipeline) {
			return nil
		}
		return viewExists(ns, old)
	}
	if c.collection(ns) != nil {
		return fail(codeNamespaceExists, "namespace %s already exists, but with different options: {}", ns)
	}
	if err := c.checkCycle(ns, v); err != nil {
		return err
	}
	c.database(ns.db).views[ns.coll] = v
	return nil
}

func (c *catalog) changeView(ns namespace, v *view) *serverError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view(ns) == nil {
		if c.collection(ns) != nil {
			return fail(codeInvalidOptions, "option not supported on a collection: viewOn")
		}
		return fail(codeNamespaceNotFound, "ns does not exist: %s", ns)
	}
	if err := c.checkCycle(ns, v); err != nil {
		return err
	}
	c.database(ns.db).views[ns.coll] = v
	return nil
}

// checkCycle refuses a view that would in the end read itself.
func (c *catalog) checkCycle(ns namespace, v *view) *serverError {
	for at, depth := v.on, 0; depth <= maxViewDepth; depth++ {
		if at == ns.coll {
			return fail(codeGraphContainsCycle, "View cycle detected: %s", ns)
		}
		next := c.view(namespace{ns.db, at})
		if next == nil {
			return nil
		}
		at = next.on
	}
	return fail(codeViewDepthLimit, "View depth limit exceeded; maximum depth is %d", maxViewDepth)
}

// drop removes a collection or a view, and says how many indexes it had.
func (c *catalog) drop(ns namespace) (indexes int, existed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	db := c.dbs[ns.db]
	if db == nil {
		return 0, false
	}
	if db.views[ns.coll] != nil {
		delete(db.views, ns.coll)
		c.prune(ns.db)
		return 0, true
	}
	coll := db.collections[ns.coll]
	if coll == nil {
		return 0, false
	}
	coll.life.ended.Store(true)
	delete(db.collections, ns.coll)
	c.prune(ns.db)
	return len(coll.indexes) + 1, true
}

// prune forgets an empty database: MongoDB lists only those that hold something.
func (c *catalog) prune(name string) {
	if db := c.dbs[name]; db != nil && len(db.collections) == 0 && len(db.views) == 0 {
		delete(c.dbs, name)
	}
}

func (c *catalog) dropDatabase(name string) (existed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	db := c.dbs[name]
	if db == nil {
		return false
	}
	for _, coll := range db.collections {
		coll.life.ended.Store(true)
	}
	delete(c.dbs, name)
	return true
}

// rename moves a collection, over the target if dropTarget is set, in one step
// (manual page "renameCollection"). Cursors of both end.
func (c *catalog) rename(from, to namespace, dropTarget bool) *serverError {
	if err := checkNamespace(to); err != nil {
		return err
	}
	if from == to {
		return fail(codeIllegalOperation, "Can't rename a collection to itself")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view(from) != nil {
		return fail(codeNotOnView, "cannot rename view: %s", from)
	}
	source := c.collection(from)
	if source == nil {
		return fail(codeNamespaceNotFound, "Source collection %s does not exist", from)
	}
	if c.view(to) != nil {
		return fail(codeNamespaceExists, "a view already exists with that name: %s", to)
	}
	if target := c.collection(to); target != nil {
		if !dropTarget {
			return fail(codeNamespaceExists, "target namespace exists")
		}
		target.life.ended.Store(true)
	}
	source.life.ended.Store(true)
	source.life, source.ns = &life{}, to
	c.database(to.db).collections[to.coll] = source
	delete(c.dbs[from.db].collections, from.coll)
	c.prune(from.db)
	return nil
}

// list describes what a database holds, by name.
func (c *catalog) list(db string) []bson.D {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var all []bson.D
	d := c.dbs[db]
	if d == nil {
		return nil
	}
	idIndex := doc("v", int32(2), "key", doc("_id", int32(1)), "name", "_id_")
	for name, coll := range d.collections {
		all = append(all, doc("name", name, "type", "collection", "options", bson.D{},
			"info", doc("readOnly", false, "uuid", coll.uuid), "idIndex", idIndex))
	}
	for name, v := range d.views {
		all = append(all, doc("name", name, "type", "view",
			"options", doc("viewOn", v.on, "pipeline", v.pipeline), "info", doc("readOnly", true)))
	}
	if len(d.views) > 0 {
		all = append(all, doc("name", systemViews, "type", "collection", "options", bson.D{},
			"info", doc("readOnly", false), "idIndex", idIndex))
	}
	slices.SortFunc(all, func(a, b bson.D) int { return strings.Compare(a[0].Value.(string), b[0].Value.(string)) })
	return all
}

// databases lists the databases and the bytes of their documents.
func (c *catalog) databases() []bson.D {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var all []bson.D
	for name, db := range c.dbs {
		size := int64(0)
		for _, coll := range db.collections {
			coll.mu.RLock()
			size += coll.bytes
			coll.mu.RUnlock()
		}
		all = append(all, doc("name", name, "sizeOnDisk", size, "empty", false))
	}
	slices.SortFunc(all, func(a, b bson.D) int { return strings.Compare(a[0].Value.(string), b[0].Value.(string)) })
	return all
}

// checkNamespace applies the naming rules of manual page "MongoDB Limits and
// Thresholds" to what is about to be created.
func checkNamespace(ns namespace) *serverError {
	if err := checkDatabase(ns.db); err != nil {
		return err
	}
	switch {
	case ns.coll == "" || strings.HasPrefix(ns.coll, ".") || strings.ContainsAny(ns.coll, "$\x00"):
		return fail(codeInvalidNamespace, "Invalid collection name: %s", ns.coll)
	case strings.HasPrefix(ns.coll, "system."):
		return fail(codeInvalidNamespace, "Invalid system namespace: %s", ns)
	case len(ns.String()) > 255:
		return fail(codeInvalidNamespace, "Fully qualified namespace is too long. Namespace: %s Max: 255", ns)
	}
	return nil
}

func checkDatabase(name string) *serverError {
	if name == "" || len(name) > 63 || strings.ContainsAny(name, "/\\. \"$*<>:|?\x00") {
		return fail(codeInvalidNamespace, "Invalid database name: '%s'", name)
	}
	return nil
}
