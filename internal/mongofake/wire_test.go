package mongofake

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

func header(length, op int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(length))
	b = append(b, 7, 0, 0, 0, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, uint32(op))
}

// message is an OP_MSG of the given sections.
func message(flags uint32, sections ...[]byte) []byte {
	body := binary.LittleEndian.AppendUint32(nil, flags)
	for _, s := range sections {
		body = append(body, s...)
	}
	return append(header(headerLength+len(body), opMsg), body...)
}

func bodySection(d bson.D) []byte { return append([]byte{0}, encode(d)...) }

func sequenceSection(name string, docs ...bson.D) []byte {
	b := append([]byte(name), 0)
	for _, d := range docs {
		b = append(b, encode(d)...)
	}
	return append(binary.LittleEndian.AppendUint32([]byte{1}, uint32(len(b)+4)), b...)
}

func legacyQuery(d bson.D) []byte {
	body := append([]byte{0, 0, 0, 0}, "admin.$cmd\x00"...)
	body = append(body, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
	body = append(body, encode(d)...)
	return append(header(headerLength+len(body), opQuery), body...)
}

func checksummed(m []byte) []byte {
	m = append(m, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(m, uint32(len(m)))
	sum := crc32.Checksum(m[:len(m)-4], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(m[len(m)-4:], sum)
	return m
}

var ping = doc("ping", int32(1), "$db", "admin")

func TestParseRequest(t *testing.T) {
	t.Parallel()
	q, err := parseRequest(message(0, bodySection(ping), sequenceSection("documents", doc("a", int32(1)), doc("b", int32(2)))))
	require.NoError(t, err)
	require.Equal(t, ping, q.body)
	require.Len(t, q.documents["documents"], 2)
	require.EqualValues(t, 7, q.id)

	q, err = parseRequest(checksummed(message(flagChecksum|flagMoreToCome, bodySection(ping))))
	require.NoError(t, err)
	require.True(t, q.noReply)

	q, err = parseRequest(legacyQuery(doc("$query", doc("isMaster", int32(1)), "$readPreference", bson.D{})))
	require.NoError(t, err)
	require.Equal(t, doc("isMaster", int32(1), "$db", "admin"), q.body)
}

// deep nests documents n levels.
func deep(n int) []byte {
	var b []byte
	for left := n; left > 0; left-- {
		b = binary.LittleEndian.AppendUint32(b, uint32(5+left*8))
		b = append(b, byte(bson.TypeEmbeddedDocument), 'd', 0)
	}
	b = append(b, 5, 0, 0, 0, 0)
	return append(b, make([]byte, n)...)
}

func malformedMessages() map[string][]byte {
	good := message(0, bodySection(ping))
	badSum := checksummed(message(flagChecksum, bodySection(ping)))
	badSum[len(badSum)-1]++
	longText := bytes.Clone(good)
	longText[bytes.Index(longText, []byte("admin"))-4] = 99
	return map[string][]byte{
		"length of nothing":       header(3, opMsg),
		"length over the limit":   header(maxMessage+messageSlack+1, opMsg),
		"length below zero":       header(-1, opMsg),
		"no flags":                header(headerLength, opMsg),
		"no section":              message(0),
		"unknown operation":       append(header(20, 2012), 0, 0, 0, 0),
		"unknown required flag":   message(1<<5, bodySection(ping)),
		"unknown section":         message(0, append([]byte{9}, encode(ping)...)),
		"two bodies":              message(0, bodySection(ping), bodySection(ping)),
		"no body":                 message(0, sequenceSection("documents")),
		"empty body":              message(0, bodySection(bson.D{})),
		"sequence twice":          message(0, bodySection(ping), sequenceSection("d", ping), sequenceSection("d", ping)),
		"sequence beside a field": message(0, bodySection(ping), sequenceSection("ping", ping)),
		"sequence cut":            message(0, bodySection(ping), []byte{1, 9, 0, 0, 0, 'd', 0, 200, 0}),
		"document too long":       message(0, []byte{0, 200, 0, 0, 0, 0}),
		"document too short":      message(0, []byte{0, 4, 0, 0, 0}),
		"string too long":         longText,
		"wrong checksum":          badSum,
		"too deep":                message(0, append([]byte{0}, deep(maxDepth+1)...)),
		"very deep":               message(0, append([]byte{0}, deep(100_000)...)),
		"query on a collection":   append(header(39, opQuery), append([]byte("\x00\x00\x00\x00admin.c\x00"), make([]byte, 11)...)...),
	}
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	for name, m := range malformedMessages() {
		_, err := readRequest(bytes.NewReader(m))
		require.Error(t, err, name)
		require.NotErrorIs(t, err, io.EOF, name)
	}
	_, err := readRequest(bytes.NewReader(message(0, bodySection(ping))[:30]))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// A malformed message ends its own connection and nothing else.
func TestMalformedMessageClosesItsConnection(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Config{})
	require.NoError(t, err)
	defer s.Close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		return c
	}
	pinged := func(c net.Conn) {
		_, err := c.Write(message(0, bodySection(ping)))
		require.NoError(t, err)
		reply, err := readRequest(bufio.NewReader(c))
		require.NoError(t, err)
		require.Equal(t, doc("ok", 1.0), reply.body)
	}
	other := dial()
	pinged(other)
	for name, m := range malformedMessages() {
		c := dial()
		pinged(c)
		_, err := c.Write(m)
		require.NoError(t, err, name)
		if tcp, ok := c.(*net.TCPConn); ok {
			require.NoError(t, tcp.CloseWrite())
		}
		n, err := io.Copy(io.Discard, c)
		require.Zero(t, n, name)
		_ = err // closed or reset, by how much was left unread
		pinged(other)
	}
}

// A document that can't be read fails its command; the connection goes on.
func TestMalformedDocument(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Config{})
	require.NoError(t, err)
	defer s.Close()
	bad := encode(doc("_id", true))
	bad[len(bad)-2] = 9
	section := append([]byte("documents\x00"), bad...)
	section = append(binary.LittleEndian.AppendUint32([]byte{1}, uint32(len(section)+4)), section...)
	q, err := parseRequest(message(0, bodySection(doc("insert", "c", "$db", "d")), section))
	require.NoError(t, err)
	reply, ok := s.run(q, 1)
	require.True(t, ok)
	c, _ := lookup(reply, "code")
	require.EqualValues(t, codeInvalidBSON, c)
}

// A mistake in this package costs one operation and no more.
func TestPanicsAreContained(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Config{})
	require.NoError(t, err)
	defer s.Close()
	c := &call{server: s, name: "insert", body: doc("insert", "c", "ordered", false), db: "d", coll: "c"}
	failed, failure := c.each(3, func(i int) *serverError {
		if i == 1 {
			panic("mistake")
		}
		return nil
	})
	require.Nil(t, failure)
	require.Len(t, failed, 1)
	require.EqualValues(t, codeInternal, failed[0].(bson.D)[1].Value)
}

func FuzzParseRequest(f *testing.F) {
	f.Add(message(0, bodySection(ping), sequenceSection("documents", doc("a", bson.A{int32(1), nil, "x"}))))
	f.Add(checksummed(message(flagChecksum, bodySection(ping))))
	f.Add(legacyQuery(doc("isMaster", int32(1))))
	for _, m := range malformedMessages() {
		if len(m) < 4096 {
			f.Add(m)
		}
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		q, err := readRequest(bytes.NewReader(m))
		if err != nil {
			return
		}
		if len(q.body) == 0 {
			t.Fatal("a request without a command")
		}
		raw := encode(q.body)
		again, err := decode(raw)
		if err != nil || !bytes.Equal(encode(again), raw) {
			t.Fatalf("doesn't survive encoding: %v", err)
		}
		keyOf(q.body)
		for _, docs := range q.documents {
			for _, d := range docs {
				checkDecode(t, d)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	decimal, _ := bson.ParseDecimal128("1.5")
	f.Add([]byte(encode(doc("a", 1.5, "b", "x", "c", bson.D{}, "d", bson.A{int32(1)}, "e", bson.Binary{Subtype: 2, Data: []byte{1}}, "f", bson.ObjectID{1}, "g", true,
		"h", bson.DateTime(1), "i", nil, "j", bson.Regex{Pattern: "a"}, "k", bson.CodeWithScope{Code: "x", Scope: bson.D{}}, "l", bson.Timestamp{T: 1}, "m", decimal))))
	f.Add(deep(maxDepth))
	f.Add([]byte{5, 0, 0, 0, 0})
	f.Fuzz(checkDecode)
}

// checkDecode compares with the driver's own decoder.
func checkDecode(t *testing.T, raw []byte) {
	d, err := decode(raw)
	if err != nil {
		return
	}
	if err := bsoncore.Document(raw).Validate(); err != nil {
		t.Fatalf("the driver refuses what decode takes: %v", err)
	}
	var theirs bson.D
	if err := bson.Unmarshal(raw, &theirs); err != nil {
		return // such as a string that isn't UTF-8
	}
	want, err := bson.Marshal(theirs)
	if err != nil {
		return
	}
	if !bytes.Equal(encode(d), want) {
		t.Fatalf("got %x, want %x", []byte(encode(d)), want)
	}
}

// The order of keys is the order of values, and descending keys turn it round.
func FuzzNumberKeys(f *testing.F) {
	f.Add(int64(1), int64(2), 1.5)
	f.Add(int64(math.MaxInt64), int64(math.MaxInt64-1), 9.223372036854775807e18)
	f.Add(int64(1)<<53+1, int64(1)<<53, math.Inf(1))
	f.Fuzz(func(t *testing.T, a, b int64, c float64) {
		want := order(a, b)
		if got := bytes.Compare(appendKey(nil, a), appendKey(nil, b)); got != want {
			t.Fatalf("%d and %d compare %d", a, b, got)
		}
		if got := bytes.Compare(appendDescendingKey(nil, a), appendDescendingKey(nil, b)); got != -want {
			t.Fatalf("%d and %d compare %d descending", a, b, got)
		}
		if a == int64(int32(a)) && keyOf(a) != keyOf(int32(a)) {
			t.Fatalf("%d has two keys", a)
		}
		// Between an integer and a double, exactly.
		if math.IsNaN(c) || math.Abs(c) > 1e300 {
			return
		}
		exact := compareExactly(a, c)
		if got := bytes.Compare(appendKey(nil, a), appendKey(nil, c)); got != exact {
			t.Fatalf("%d and %v compare %d, want %d", a, c, got, exact)
		}
	})
}

func compareExactly(a int64, c float64) int {
	switch {
	case c >= 1<<63:
		return -1
	case c < -(1 << 63):
		return 1
	}
	whole := math.Trunc(c)
	if diff := order(a, int64(whole)); diff != 0 {
		return diff
	}
	switch {
	case c > whole:
		return -1
	case c < whole:
		return 1
	}
	return 0
}

func TestDecimalKeys(t *testing.T) {
	t.Parallel()
	texts := []string{"NaN", "-Infinity", "-1E+250", "-1.1", "-1.0999999999999999999999999999999", "0", "1E-250", "0.1", "0.1000000000000000000000000000000001", "9007199254740993", "1E+250", "Infinity"}
	var last string
	for _, s := range texts {
		d, err := bson.ParseDecimal128(s)
		require.NoError(t, err)
		k := keyOf(d)
		require.Less(t, last, k, s)
		last = k
	}
	ten, err := bson.ParseDecimal128("1.000E+1")
	require.NoError(t, err)
	require.Equal(t, keyOf(int32(10)), keyOf(ten))
	require.Equal(t, keyOf(10.0), keyOf(ten))
	require.Equal(t, keyOf(int64(10)), keyOf(ten))
	huge, err := bson.ParseDecimal128("1E+6000")
	require.NoError(t, err)
	require.Panics(t, func() { keyOf(huge) }, "refused rather than compared wrongly")
}
