//go:build !failpoints

package failpoint

// Enabled says whether this binary has failpoints.
const Enabled = false

// Hit passes the named failpoint. Without the build tag nothing happens there.
func Hit(string) error { return nil }
