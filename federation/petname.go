package federation

import (
	"fmt"
	"strings"
)

const maxPetname = 32

// CheckPetname checks an operator's name for a peer. It must be fit for a metric
// label, a file name and a DNS label: 1 to 32 of a-z, 0-9 and "-", not at the ends.
func CheckPetname(name string) error {
	if name == "" || len(name) > maxPetname || name[0] == '-' || name[len(name)-1] == '-' ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("peer name %.80q: want 1 to %d characters of a-z, 0-9 and \"-\", without \"-\" at either end", name, maxPetname)
	}
	return nil
}
