package postgres

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/xi2/xz"
)

// unpack writes what is in the archive, a tar.xz in a jar, into a new folder.
// All users may read it, whatever the umask is.
func (f *fetcher) unpack(ctx context.Context, jar, to string) (err error) {
	z, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	var inner *zip.File
	for _, file := range z.File {
		if strings.HasSuffix(file.Name, ".txz") {
			inner = file
		}
	}
	if inner == nil {
		return errors.New("it holds no .txz")
	}
	packed, err := inner.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	m := &meter{ctx: ctx, r: packed, what: "unpacking PostgreSQL " + f.version, total: int64(inner.UncompressedSize64), report: f.report}
	unxz, err := xz.NewReader(bufio.NewReader(m), 0)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(to, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(to) // out of which no name leads
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return untar(unxz, root)
}

func untar(r io.Reader, root *os.Root) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = makeIn(root, name)
		case tar.TypeReg:
			if err = makeIn(root, path.Dir(name)); err == nil {
				err = writeIn(root, name, t, 0o644|os.FileMode(h.Mode)&0o111)
			}
		case tar.TypeSymlink:
			if path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
				return fmt.Errorf("the link %s leads out of the archive", name)
			}
			if err = makeIn(root, path.Dir(name)); err == nil {
				err = root.Symlink(h.Linkname, name)
			}
		default:
			return fmt.Errorf("%s is of an unknown type %q", name, h.Typeflag)
		}
		if err != nil {
			return err
		}
	}
}

func makeIn(root *os.Root, dir string) error {
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for ; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if err := root.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func writeIn(root *os.Root, name string, r io.Reader, mode os.FileMode) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// A meter reports what is read through it, and stops when ctx ends.
type meter struct {
	ctx         context.Context
	r           io.Reader
	what        string
	done, total int64
	report      Report
}

func (m *meter) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.report(m.what, m.done, m.total)
	return n, err
}
