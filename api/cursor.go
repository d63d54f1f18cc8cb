package api

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"sync/atomic"
)

// cursors makes cursors and reads them. A cursor is sealed (AES-GCM): what
// comes back is what was given out, for the same list, and it shows nobody the
// address or the name at which a page ended, though it stands in URLs and so in
// logs. The key is a secret that the database keeps, so that every process
// reads the cursors of every other one and there is nothing to configure.
type cursors struct {
	secret func(ctx context.Context, name string) ([]byte, error)
	sealer atomic.Pointer[cipher.AEAD] // nil until the secret was read
}

// sealOverhead is what sealing adds: a nonce of 12 bytes and a tag of 16.
const sealOverhead = 28

func (c *cursors) open(ctx context.Context) (cipher.AEAD, error) {
	if ready := c.sealer.Load(); ready != nil {
		return *ready, nil
	}
	secret, err := c.secret(ctx, "cursors")
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(secret)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	sealer, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	c.sealer.Store(&sealer)
	return sealer, nil
}

// encode makes a cursor of a list: opaque to clients, safe in a URL.
func (c *cursors) encode(ctx context.Context, list string, after []byte) (string, error) {
	sealer, err := c.open(ctx)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sealer.Seal(nil, nil, after, []byte(list))), nil
}

// decode returns what a cursor of a list was made of; ok is false for anything
// that encode has not made for this list.
func (c *cursors) decode(ctx context.Context, list, cursor string) (after []byte, ok bool, err error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(sealed) < sealOverhead {
		return nil, false, nil
	}
	sealer, err := c.open(ctx)
	if err != nil {
		return nil, false, err
	}
	after, err = sealer.Open(nil, nil, sealed, []byte(list))
	return after, err == nil, nil
}
