package link

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

const alpn = "h2"

// Why a far end is refused.
var (
	errBlocked = errors.New("the grid is blocked here")
	errRevoked = errors.New("the grid has revoked this node")
)

// prove checks the chain of a far end and that it belongs to the node that the
// transport has authenticated.
func prove(cs *tls.ConnectionState, remote transports.Addr) (federation.Proof, error) {
	if cs.NegotiatedProtocol != alpn {
		return federation.Proof{}, fmt.Errorf("negotiated protocol %q, want %q", cs.NegotiatedProtocol, alpn)
	}
	proof, err := federation.VerifyChain(cs.PeerCertificates, time.Now())
	if err != nil {
		return proof, err
	}
	if !proof.Names(remote) {
		return proof, fmt.Errorf("the leaf names %q, and the connection is with %s", proof.Addrs, remote.ID())
	}
	return proof, nil
}

// welcome returns the active peer that a proof stands for, nil for one that
// reaches only UnknownPaths, or why it reaches nothing.
func welcome(now *federation.Snapshot, proof federation.Proof) (*federation.Peer, error) {
	// The lasting id is checked too: a grid that was blocked stays so under
	// whatever key it has rotated to.
	if p := now.Peer(proof.Grid); p != nil && p.State == federation.StateBlocked {
		return nil, errBlocked
	}
	p := now.PeerByKey(proof.Key)
	if p == nil {
		return nil, nil
	}
	if p.State == federation.StateBlocked {
		return nil, errBlocked
	}
	if p.Descriptor != nil && p.Descriptor.Revokes(proof.Node) {
		return nil, errRevoked
	}
	if p.State != federation.StateActive {
		return nil, nil
	}
	return p, nil
}

// serverTLS is the configuration for one accepted connection. The proof is set
// when the handshake succeeds.
func (l *Links) serverTLS(self, remote transports.Addr, proof *federation.Proof) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		ClientAuth: tls.RequireAnyClientCert,
		// A resumed session would skip nothing that matters, but there is nothing
		// to win either: links live long.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return l.cfg.Leaf(self)
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			p, err := prove(&cs, remote)
			if err != nil {
				return err
			}
			if _, err := welcome(l.cfg.Directory.Now(), p); err != nil {
				return err
			}
			*proof = p
			return nil
		},
	}
}

// clientTLS is the configuration for one dialled connection, pinned to a grid
// key. The name goes into the server name indication.
func (l *Links) clientTLS(self, remote transports.Addr, grid ed25519.PublicKey, name string, proof *federation.Proof) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		// No authorities, and the name proves nothing: VerifyConnection pins the grid key.
		InsecureSkipVerify: true,
		ServerName:         name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return l.cfg.Leaf(self)
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			p, err := prove(&cs, remote)
			if err != nil {
				return err
			}
			if !bytes.Equal(p.Key, grid) {
				return fmt.Errorf("%w: grid %s answered with %w", errWrongGrid, p.Grid.Short(), &federation.WrongKeyError{Got: p.Key, Want: grid})
			}
			*proof = p
			return nil
		},
	}
}

var errWrongGrid = errors.New("the node belongs to another grid")

// errRefused is a refusal by the far end, in its TLS layer or by its HTTP answer.
var errRefused = errors.New("refused by the peer")

// Explain turns the alert of a far end that refused this gateway into words; an
// error of another kind is returned as it is. In TLS 1.3 a client's handshake
// succeeds before the server has looked at its certificate, so the refusal comes
// with the first read (RFC 8446 §2, §4.4.2).
func Explain(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return err
	}
	return fmt.Errorf("%w: %s: its operator has blocked this grid or node, or one side's clock or node address "+
		"is wrong; its log says which", errRefused, op.Err)
}

// explain is Explain for a connection whose write side may have failed before
// the alert was read.
func explain(conn *tls.Conn, err error) error {
	if said := Explain(err); errors.Is(said, errRefused) {
		return said
	}
	// A read error of a tls.Conn stays, so this finds an alert that was read.
	if conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if _, readErr := conn.Read(make([]byte, 1)); readErr != nil {
			if said := Explain(readErr); errors.Is(said, errRefused) {
				return said
			}
		}
	}
	return err
}
