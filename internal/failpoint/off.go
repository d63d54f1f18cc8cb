//go:build !failpoints

package failpoint

// Enabled says whether this binary has failpoints.
const Enabled = false

// Hit passes the named failpoint. Without the build tag nothing happens there.
func Hit(string) error { return nil }

// Mutant reports whether the named defence is to be left out. Without the build
// tag none ever is.
func Mutant(string) bool { return false }
