// Package api is outflow's REST API: customers, orders and their events over
// HTTP, as JSON.
//
// # What it promises
//
//   - Every answer that is not a success is an RFC 9457 problem document with a
//     stable type, which the server also explains as a page (/problems/...). It
//     repeats no value that was sent and says nothing of the server's insides.
//   - A body is refused with all its problems at once, each named by where it is
//     ("body.items[0].quantity"), or accepted as a whole.
//   - Bodies are read strictly: unknown properties, names given twice, bytes
//     that are not UTF-8, half surrogate pairs, anything after the value, more
//     than 64 KiB and deep nesting are refused. null means absent.
//   - A property that is computed can't be set: POST refuses it, PUT accepts a
//     resource as GET shows it and ignores it, PATCH refuses another value than
//     the resource has.
//   - A PUT or PATCH is one change with one event, or none when it changes
//     nothing.
//   - Every path answers with and without a trailing slash, without a redirect.
//   - An id that is not a UUID is a 422 that names path.id; a UUID that nothing
//     has is a 404.
//   - Entity tags are versions. If-None-Match spares who has a resource already
//     from getting it again (304); If-Match keeps a change from overwriting what
//     its sender has not seen (412), and can be made a must (428). A change
//     without it never undoes another one that came in between, either: patches
//     are applied to what is there when they are written.
//   - A JSON Patch is applied as a whole or not at all. One that is none is 400,
//     one that doesn't fit the resource as it is (a test fails, nothing is at a
//     path) is 409, one that would make it invalid is 422 (RFC 5789, 2.2).
//   - Lists are sorted by what they say and by id among equals, so that a page
//     begins after the item at which the one before ended, whatever was inserted
//     or deleted meanwhile. next_cursor is always there and null on the last page;
//     a cursor leads to a page only with the sort and filters that it was made
//     with, in every process on the same database, and says nothing to others.
//   - The feed of all events has no gap and no end: whoever goes from cursor to
//     cursor gets each committed event once, those of a resource in order, over
//     pages, waiting requests and streams alike. A cursor is a place in the
//     database's history; where that was replaced, it is refused (410).
//   - A transition that an order's status forbids is a 409 that names the status.
//   - A request's id (X-Request-Id) and traceparent travel in the events that it
//     causes, and are in the response.
//   - Nobody who sends or reads slowly holds up anybody else, and what net/http
//     refuses by itself is told as a problem, too.
//   - A change that a browser sends on behalf of another site is refused: the
//     API has no other way yet to know who asks.
//
// # How it is made
//
// huma routes the requests and writes the OpenAPI documents. Handlers are
// attached to its adapter directly and not through [huma.Register], because
// that decodes and validates a body in passes of reflection whose messages
// repeat what was sent, and because its errors are made by a global. What
// bodies may hold is said twice, therefore: by decode functions that run and by
// schemas that document; a test keeps them together. Every answer that the tests
// get is held against the document, and a version of the document never changes
// (testdata/versions.txt).
//
// A resource is described by an entity: its path, how its JSON is read, and
// the functions of package store. Handlers and documentation follow from it.
package api
