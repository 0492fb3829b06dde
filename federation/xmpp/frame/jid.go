package frame

import "bytes"

// Bare returns the JID without its resource (RFC 7622 §3.1).
func Bare(jid []byte) []byte {
	if i := bytes.IndexByte(jid, '/'); i >= 0 {
		return jid[:i]
	}
	return jid
}

// Resource returns what stands behind the first '/', or nil.
func Resource(jid []byte) []byte {
	if i := bytes.IndexByte(jid, '/'); i >= 0 {
		return jid[i+1:]
	}
	return nil
}

// Domain returns the domain part: the resource is cut off first, for it may hold
// any character, and then what stands before the first '@' (RFC 7622 §3.2).
// It is not normalised.
func Domain(jid []byte) []byte {
	bare := Bare(jid)
	if i := bytes.IndexByte(bare, '@'); i >= 0 {
		return bare[i+1:]
	}
	return bare
}

// Local returns the local part, or nil.
func Local(jid []byte) []byte {
	bare := Bare(jid)
	if i := bytes.IndexByte(bare, '@'); i >= 0 {
		return bare[:i]
	}
	return nil
}
