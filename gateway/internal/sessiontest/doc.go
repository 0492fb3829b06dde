// Package sessiontest holds the tests of federation/mqtt/session against real
// brokers. It has no code of its own: the fixtures are of peertest, which packages
// below gateway cannot import.
package sessiontest
