package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// download completes the archive in the file path, which may hold a part of it,
// and checks it. A file that turns out to be wrong is emptied.
func (f *fetcher) download(ctx context.Context, path string) (err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for again := false; ; again = true {
		pieces, err := f.complete(ctx, file)
		if err != nil {
			return err
		}
		sum, err := sumOf(file)
		if err != nil {
			return err
		}
		if sum == f.archive.sha256 {
			return nil
		}
		if err := file.Truncate(0); err != nil {
			return err
		}
		// Pieces may come from different files, and the beginning of one from
		// a disk that was full or lost its power. A whole one may not.
		if again || pieces == 1 {
			return fmt.Errorf("%s is not the file that is expected: its SHA-256 is %s, not %s",
				f.address(), sum, f.archive.sha256)
		}
	}
}

// complete appends to file until it has its size, over as many connections as
// that takes. It tells of how many pieces the file is made.
func (f *fetcher) complete(ctx context.Context, file *os.File) (pieces int, err error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if size > f.archive.size {
		if err := file.Truncate(0); err != nil {
			return 0, err
		}
		size = 0
	}
	if size > 0 {
		pieces = 1
	}
	client, closeIdle := newClient()
	defer closeIdle()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = f.retry
	most, fruitless := size, 0
	for size < f.archive.size {
		var failed error
		size, failed = f.append(ctx, client, file, size)
		if failed == nil {
			pieces++
			break
		}
		var p *backoff.PermanentError
		if errors.As(failed, &p) {
			return 0, p.Unwrap()
		}
		pieces++
		if size > most {
			most, fruitless = size, 0
			wait.Reset()
		} else if fruitless++; fruitless == 3 {
			return 0, failed
		}
		f.report(fmt.Sprintf("trying again: %v", failed), 0, 0)
		t := time.NewTimer(wait.NextBackOff())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0, context.Cause(ctx)
		}
	}
	return pieces, nil
}

// newClient asks the proxies that HTTPS_PROXY and its like name, as Go's own
// programs do.
func newClient() (_ *http.Client, closeIdle func()) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // the bytes are counted
	t.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return &http.Client{Transport: t}, t.CloseIdleConnections
}

// address is where the archive is, without a password.
func (f *fetcher) address() string { return f.mirror.JoinPath(f.path()).Redacted() }

func (f *fetcher) path() string {
	artifact := "embedded-postgres-binaries-" + f.platform
	return strings.Join([]string{"io/zonky/test/postgres", artifact, f.version, artifact + "-" + f.version + ".jar"}, "/")
}

var errStalled = errors.New("the connection has gone silent")

// append asks for the archive from offset on and writes it to file. It returns
// the file's new size. What need not be tried again is a backoff.PermanentError.
func (f *fetcher) append(ctx context.Context, client *http.Client, file *os.File, offset int64) (size int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(f.stall, func() { cancel(errStalled) })
	defer silent.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.mirror.JoinPath(f.path()).String(), nil)
	if err != nil {
		return offset, backoff.Permanent(err)
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	what := fmt.Sprintf("fetching PostgreSQL %s from %s", f.version, cmp.Or(f.mirror.Host, f.mirror.Path))
	f.report(what, offset, f.archive.size)
	resp, err := client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%s: %w", f.address(), cause)
		}
		if offset == 0 || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			// There is no network, most likely. That is told at once.
			return offset, backoff.Permanent(err)
		}
		return offset, err
	}
	defer func() { _ = resp.Body.Close() }()
	total := resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusOK:
		offset = 0 // the server knows no ranges, or nothing was there
	case resp.StatusCode == http.StatusPartialContent && offset > 0:
		total = -1 // that the pieces fit is seen when they are all there
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return offset, fmt.Errorf("%s: %s", f.address(), resp.Status)
	default:
		return offset, backoff.Permanent(fmt.Errorf("%s: %s", f.address(), resp.Status))
	}
	if total >= 0 && total != f.archive.size { // a portal's page, say
		return offset, backoff.Permanent(fmt.Errorf("%s is not the file that is expected: it has %d bytes, not %d", f.address(), total, f.archive.size))
	}
	if err := file.Truncate(offset); err != nil {
		return offset, backoff.Permanent(err)
	}
	m := &meter{ctx: ctx, what: what, done: offset, total: f.archive.size, report: f.report,
		r: &noisy{r: resp.Body, heard: func() { silent.Reset(f.stall) }}}
	out := &writer{w: io.NewOffsetWriter(file, offset)}
	n, err := io.Copy(out, io.LimitReader(m, f.archive.size-offset))
	size = offset + n
	switch {
	case out.err != nil:
		return size, backoff.Permanent(out.err) // the disk is full
	case err == nil && size < f.archive.size:
		return size, fmt.Errorf("%s ended after %d of %d bytes", f.address(), size, f.archive.size)
	case err != nil && context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), errStalled):
		return size, backoff.Permanent(context.Cause(ctx))
	case err != nil:
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		return size, fmt.Errorf("%s after %d of %d bytes: %w", f.address(), size, f.archive.size, err)
	}
	return size, nil
}

func sumOf(file *os.File) (string, error) {
	h := sha256.New()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// noisy calls heard after every read that brought something.
type noisy struct {
	r     io.Reader
	heard func()
}

func (n *noisy) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if got > 0 {
		n.heard()
	}
	return got, err
}

// writer remembers its own error, which io.Copy mixes with the reader's.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}
