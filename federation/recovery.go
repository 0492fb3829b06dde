package federation

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// A recovery sheet is 32 secret bytes and the first 3 bytes of their SHA-256, in
// groups of base32 that people can copy by hand. The next grid key is derived
// from it, and it is on no disk.
const (
	recoverySecretLen = 32
	recoverySumLen    = 3
	recoveryGroup     = 7 // 56 characters make 8 groups
)

// newRecovery returns a fresh sheet and the grid key it stands for.
func newRecovery() (sheet string, next ed25519.PrivateKey, err error) {
	secret := make([]byte, recoverySecretLen)
	if _, err := rand.Read(secret); err != nil {
		return "", nil, fmt.Errorf("make recovery secret: %w", err)
	}
	next, err = recoveryKey(secret)
	return formatRecovery(secret), next, err
}

// recoveryKey derives the grid key that a recovery secret stands for.
func recoveryKey(secret []byte) (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, "yggate/next-grid-key/1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive next grid key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func formatRecovery(secret []byte) string {
	sum := sha256.Sum256(secret)
	text := b32.EncodeToString(append(append([]byte{}, secret...), sum[:recoverySumLen]...))
	var groups []string
	for len(text) > recoveryGroup {
		groups, text = append(groups, text[:recoveryGroup]), text[recoveryGroup:]
	}
	return strings.Join(append(groups, text), " ")
}

// parseRecovery reads what a person typed from the sheet: case, spaces, dashes
// and line ends do not matter, and 0, 1 and 8, which base32 does not have, are
// taken for the letters they look like.
func parseRecovery(sheet string) ([]byte, error) {
	text := strings.NewReplacer(" ", "", "-", "", "\t", "", "\r", "", "\n", "", "0", "O", "1", "I", "8", "B").
		Replace(strings.ToUpper(sheet))
	want := b32.EncodedLen(recoverySecretLen + recoverySumLen)
	if len(text) != want {
		return nil, fmt.Errorf("recovery sheet: %d characters, want %d in 8 groups of %d", len(text), want, recoveryGroup)
	}
	raw, err := b32.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("recovery sheet: only the letters A-Z and the digits 2-7 occur in it: %w", err)
	}
	secret := raw[:recoverySecretLen]
	sum := sha256.Sum256(secret)
	if string(sum[:recoverySumLen]) != string(raw[recoverySecretLen:]) {
		return nil, errors.New("recovery sheet: the check characters do not match; look for a mistyped character")
	}
	return secret, nil
}
