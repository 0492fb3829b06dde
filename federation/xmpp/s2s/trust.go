package s2s

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

var errNoCertificate = errors.New("the server showed no certificate")

// checkCertificate says why the certificate that a server showed does not prove
// that it is domain; nil if it does.
func (s *Streams) checkCertificate(server *Server, domain string, state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errNoCertificate
	}
	leaf := state.PeerCertificates[0]
	if len(server.Pins) > 0 && slices.Contains(server.Pins, sha256.Sum256(leaf.RawSubjectPublicKeyInfo)) {
		return nil
	}
	rest := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		rest.AddCert(c)
	}
	opts := x509.VerifyOptions{
		Roots: s.ca.Roots(), DNSName: domain, Intermediates: rest,
		// A server shows the same certificate as TLS server and as TLS client,
		// and public CAs no longer mark any for the latter.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	_, err := leaf.Verify(opts)
	if err != nil && server.Roots != nil {
		opts.Roots = server.Roots
		_, err = leaf.Verify(opts)
	}
	if err != nil {
		return fmt.Errorf("certificate of the local server: %w", err)
	}
	return nil
}

// serverTLS is for inbound streams to the peer domain. The client's certificate
// is only asked for here: what it proves decides which mechanisms are offered.
func (s *Streams) serverTLS(peer string) (*tls.Config, error) {
	leaf, err := s.ca.Mint(peer)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{*leaf}, SessionTicketsDisabled: true,
	}, nil
}

// clientTLS is for outbound streams from the peer domain. Without a certificate
// that proves the server's domain the handshake fails, unless the server is
// trusted by its address.
func (s *Streams) clientTLS(server *Server, peer, domain string) (*tls.Config, error) {
	leaf, err := s.ca.Mint(peer)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: domain,
		// Not Certificates: a server that does not name our CA would get none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return leaf, nil },
		// VerifyConnection takes its place, because pins and two sets of roots
		// are more than RootCAs can say.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if err := s.checkCertificate(server, domain, state); err != nil && !server.Dialback {
				return err
			}
			return nil
		},
		DynamicRecordSizingDisabled: true, // full records from the first batch on
	}, nil
}
