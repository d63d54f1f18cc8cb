// Package rebuild makes anew what a worker has made of events, beside the
// worker, and puts it in the place of what is there.
//
// # How
//
// The events are applied to a shadow that nobody reads. When it has caught up,
// the workers are paused, the shadow gets the rest, and takes the place of the
// live one. One document in _rebuilds says how far that is, by [Job.Name]:
//
//	filling   the shadow follows the events; workers don't notice
//	pausing   workers that look for their positions wait
//	swapping  it is decided: whoever sees it, completes it
//
// Workers are paused by their positions: the generation of each is raised, so
// that a worker can't write its position any more, begins again, finds that a
// rebuild is pausing (see [Gate]), says that it waits, and waits. What it wrote
// before that is of events that are in Kafka, so a shadow that is filled up to
// Kafka's end holds it too, and no reader sees anything go back at the swap. A
// worker that doesn't answer, because it is stopped, is waited for only so
// long: what it writes when it wakes up is guarded by versions (or goes to
// collections that are gone), and its position is refused.
//
// To swap is to record what the positions are going to be, to move the shadow
// in, to write the positions with the next generation, and to forget the
// record. Each of these does nothing when it is done already, so the rebuild
// and any number of workers may do them at once, or again after a crash; no
// worker begins in between.
//
// # What is left out
//
// An event that can't be applied is left out, together with what follows in its
// key, as the worker would: and the worker's position is put back to where it
// was, so that it parks them. What an operator has dropped is left out alone.
// The record says where each key was left out. When an operator has let one go
// since, which is looked at while the workers wait, the rebuild goes back there:
// the workers have passed what follows, and nobody would bring it again.
//
// # One at a time
//
// A rebuild owns its record for as long as the record's beat goes on. Another
// one that is started waits, and takes over where it was when the beat stops;
// one that lost its record to another can't write it any more, and what it
// writes to the shadow is guarded.
package rebuild
