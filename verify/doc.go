// Package verify compares what must be equal, while the service goes on: the
// replica with the customers and orders that it is a copy of, the event log
// with itself, and Kafka with the event log.
//
// # The replica
//
// [Replica.Run] reads both sides in the order of their ids and compares version
// and content. A copy that is made from events is behind, so what differs then
// is only suspected. It is looked at again once everything that had been
// committed by then is in the replica: the relay says when it is in Kafka, and
// the replica's positions say when it is applied. Of a suspect, the replica is
// read before the source, and versions only grow; so it is
//
//   - missing or stale if the replica still lacks the version that the source
//     had when it was first read;
//   - ahead if it has a version that the source has not even now;
//   - extra if the source has no such row (rows of deleted entities stay);
//   - corrupt if it has another content at a version than the source has at this
//     version, or the event log once the source has moved on. What a newer
//     version of outflow has added to an entity is only in the log.
//
// Nothing else differs for longer than the pipeline takes, so there are no false
// alarms. Suspects are settled a hundred thousand at a time, and are no more than
// their ids and versions, so memory doesn't grow with the data or with what is
// wrong.
//
// Repair writes what the source holds, provided that the document still has the
// version that was seen: whoever changes it meanwhile wins.
package verify
