//go:build !race

package outbox

// memoryBound is what a relay's resident memory stays under, in bytes.
const memoryBound = 256 << 20
