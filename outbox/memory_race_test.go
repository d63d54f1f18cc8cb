//go:build race

package outbox

// memoryBound is larger here because the race detector keeps a shadow of the
// memory that the relay uses (https://go.dev/doc/articles/race_detector).
const memoryBound = 512 << 20
