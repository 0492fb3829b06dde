package config

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with its unit.
type Size int64

// sizeUnits has the longer names first, so that "KiB" is not read as "B".
var sizeUnits = []struct {
	name string
	n    float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText reads forms such as 256KiB, 1.5MB and 4096B.
func (s *Size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	for _, u := range sizeUnits {
		num, ok := strings.CutSuffix(in, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err != nil || !(n > 0) || n*u.n >= math.MaxInt64 || n*u.n < 1 {
			break
		}
		*s = Size(n * u.n)
		return nil
	}
	return fmt.Errorf("%q is not a size; write a number above 0 and its unit, such as 256KiB, 10MB or 1GiB", in)
}

// ParseDuration reads Go's forms, such as 90s and 1h30m, and days, as in 7d.
func ParseDuration(in string) (time.Duration, error) {
	in = strings.TrimSpace(in)
	v, err := time.ParseDuration(in)
	if num, ok := strings.CutSuffix(in, "d"); ok {
		var days float64
		days, err = strconv.ParseFloat(num, 64)
		if days *= float64(24 * time.Hour); err == nil && !(math.Abs(days) < math.MaxInt64) {
			err = strconv.ErrRange
		}
		v = time.Duration(days)
	}
	if err != nil || v <= 0 {
		return 0, fmt.Errorf("%q is not a duration; write a number above 0 and its unit, such as 30s, 12h or 7d", in)
	}
	return v, nil
}

// Duration is a time, written with its unit.
type Duration time.Duration

// UnmarshalText reads what ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err == nil {
		*d = Duration(v)
	}
	return err
}

// Prefix is a range of addresses: 127.0.0.0/8, or one address.
type Prefix struct{ netip.Prefix }

// UnmarshalText reads an address or a prefix.
func (p *Prefix) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil {
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	v, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%q is not an address or a range of them; write 127.0.0.1 or 10.0.0.0/8", text)
	}
	p.Prefix = v.Masked()
	return nil
}
