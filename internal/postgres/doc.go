// Package postgres runs a private PostgreSQL, for outflow-dev and for tests, from
// the machine's own binaries, or from ones that it fetches where there are none.
// Nothing in production imports it.
//
// A server owns one directory (Config.Dir):
//
//	data/         the cluster, mode 0700, of the user that PostgreSQL runs as
//	run/          the Unix socket
//	postgres.log  what the server says, over all its starts
//	lock          held with flock(2) by the process that runs the server
//
// What it promises:
//
//   - It works for root, too. PostgreSQL refuses root, so it then runs as the
//     owner of an existing cluster, else as user postgres, else as nobody, and
//     also when that user may not enter the directory's parents (a home folder
//     of mode 0700), which needs /proc, so Linux.
//   - The server does not outlive the process that started it, however that
//     ends: on Linux the kernel tells it (a parent-death signal), elsewhere a
//     small watching shell does. It is told to shut down immediately, which is
//     what a crash looks like to PostgreSQL, and the next Start recovers
//     everything that was committed.
//   - A cluster is there entirely or not at all: initdb works in a folder
//     beside it that is renamed when it is complete and on disk.
//   - One process at a time: a second Start on a directory answers ErrInUse. A
//     server that is still shutting down after its owner's death is waited for.
//   - Commits are durable unless Config.NoSync says otherwise.
//
// What FindOrFetch fetches is PostgreSQL as Zonky packs it for Maven Central, of
// one version, whose size and SHA-256 are part of this package. It lies in
// FetchDir, complete and readable for all users, or not at all:
//
//	17.11.0-linux-amd64/           bin, lib and share
//	17.11.0-linux-amd64.lock       held with flock(2) by the process that fetches
//	17.11.0-linux-amd64.jar        the archive, or the part of it that has come
//	17.11.0-linux-amd64.unpacking  what is being unpacked
//
// The server listens on 127.0.0.1 and on the Unix socket, and trusts whoever
// connects: every user of this machine may connect as a superuser. That is for
// development, not for machines shared with people one doesn't trust.
package postgres
