package config

import (
	"path/filepath"
)

// Database is the one file that holds all state but the keys.
func (c *Config) Database() string { return filepath.Join(c.State, "yggate.db") }

// MeshKey is the Yggdrasil key of this node, a replaceable address.
func (c *Config) MeshKey() string { return filepath.Join(c.State, "mesh.key") }

// LocalCA is the directory of the CA that only the local servers trust, whatever their
// protocol. Its name is older than the second protocol; servers have been told it.
func (c *Config) LocalCA() string { return filepath.Join(c.State, "xmpp") }

// Lock is held by the one gateway that may use the state.
func (c *Config) Lock() string { return filepath.Join(c.State, "lock") }
