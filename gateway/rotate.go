package gateway

import (
	"errors"
	"fmt"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/config"
)

// Rotation says how the keys of a grid are replaced.
type Rotation struct {
	// Sheet is the recovery sheet, as typed.
	Sheet string
	// MeshKey has the mesh key replaced, too, and the Yggdrasil address with it.
	MeshKey bool
	// Keep is given the new sheet before anything changes; where it fails, nothing does.
	Keep func(sheet string) error
}

// Rotate replaces the grid key and the node key, see federation.Rotate. It refuses
// while a gateway runs with this state.
func Rotate(c *config.Config, r Rotation) (id *federation.Identity, err error) {
	unlock, err := lock(c)
	if err != nil {
		return nil, fmt.Errorf("rotate: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if id, err = federation.Rotate(c.State, r.Sheet, r.Keep); err != nil || !r.MeshKey {
		return id, err
	}
	if _, err := federation.ReplaceKeyFile(c.MeshKey()); err != nil {
		return nil, fmt.Errorf("the grid key is a new one, the mesh key is not: %w", err)
	}
	return id, nil
}
