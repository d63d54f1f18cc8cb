package api

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// drain reads a spool to its end.
func drain(s *spool, size int) ([]byte, error) {
	var all []byte
	b := make([]byte, size)
	for {
		n, err := s.next(b)
		all = append(all, b[:n]...)
		if err != nil {
			return all, err
		}
	}
}

func TestSpoolKeepsOrderBeyondMemory(t *testing.T) {
	t.Parallel()
	for name, atOnce := range map[string]bool{"read while written": true, "read afterwards": false} {
		s := newSpool()
		var want []byte
		rnd := rand.NewPCG(1, 2)
		type result struct {
			b   []byte
			err error
		}
		got := make(chan result, 1)
		read := func() {
			b, err := drain(s, 1000)
			got <- result{b, err}
		}
		if atOnce {
			go read()
		}
		for range 400 {
			part := make([]byte, rnd.Uint64()%40_000)
			for i := range part {
				part[i] = byte(rnd.Uint64())
			}
			want = append(want, part...)
			_, err := s.Write(part)
			require.NoError(t, err)
		}
		s.end()
		if !atOnce {
			go read()
		}
		r := <-got
		require.ErrorIs(t, r.err, io.EOF, name)
		require.True(t, bytes.Equal(want, r.b), name)
		s.close()
	}
}

func TestFullSpoolHoldsTheWriterUp(t *testing.T) {
	t.Parallel()
	s := newSpool()
	defer s.close()
	s.limit = 2 << 20
	part := make([]byte, 256<<10)
	wrote := make(chan int, 100)
	failed := make(chan error, 1)
	go func() {
		for i := range 100 {
			if _, err := s.Write(part); err != nil {
				failed <- err
				return
			}
			wrote <- i
		}
	}()
	count := func(least int) bool { return len(wrote) >= least }
	require.Eventually(t, func() bool { return count(12) }, time.Minute, time.Millisecond)
	require.Never(t, func() bool { return count(13) }, 50*time.Millisecond, 5*time.Millisecond)
	_, err := s.next(make([]byte, 3<<20))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return count(13) }, time.Minute, time.Millisecond)
	gone := errors.New("the client is gone")
	s.abandon(gone)
	require.ErrorIs(t, <-failed, gone)
	_, err = s.next(part)
	require.ErrorIs(t, err, gone)
}

func TestLinesAreCut(t *testing.T) {
	t.Parallel()
	long := string(bytes.Repeat([]byte("x"), maxBody+1))
	fits := long[:maxBody]
	body := "{}\r\n\n  \n[1]\n" + long + "\n" + fits + "\n" + long + long + "\nlast"
	var got []line
	readLines(bytes.NewReader([]byte(body)), func(p packet) bool { got = append(got, p.lines...); return true })
	texts := map[int]string{1: "{}", 4: "[1]", 6: fits, 8: "last"}
	require.Len(t, got, 6)
	for _, l := range got {
		if l.n == 5 || l.n == 7 {
			require.ErrorContains(t, l.err, "body_too_large")
			continue
		}
		require.NoError(t, l.err)
		require.Equal(t, texts[l.n], l.text)
	}
	got = nil
	readLines(io.MultiReader(bytes.NewReader([]byte("1\n2\n3")), brokenReader{}), func(p packet) bool { got = append(got, p.lines...); return true })
	require.Len(t, got, 3)
	require.ErrorContains(t, got[2].err, "malformed_body")
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
