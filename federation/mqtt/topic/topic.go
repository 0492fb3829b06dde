// Package topic knows MQTT topic names and filters (MQTT 5 §4.7): what they may be,
// which name matches which filter, which filter says no more than another, and how a
// name is rewritten on its way to another grid. It is pure, and quick enough to be
// asked about every message.
package topic

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// MaxLength is how many bytes a name or a filter may have (§1.5.4).
	MaxLength = 65535
	// MaxLevels bounds the levels of a name or a filter. The standard does not; the
	// brokers do (mosquitto has 200).
	MaxLevels = 200
)

// CheckName says what keeps s from being a topic name (§4.7.1, §4.7.3).
func CheckName(s string) error {
	if err := check(s); err != nil {
		return fmt.Errorf("topic name %.80q: %w", s, err)
	}
	if strings.ContainsAny(s, "+#") {
		return fmt.Errorf("topic name %.80q: + and # are for filters", s)
	}
	return nil
}

// CheckFilter says what keeps s from being a topic filter (§4.7.1, §4.7.3).
func CheckFilter(s string) error {
	if err := check(s); err != nil {
		return fmt.Errorf("topic filter %.80q: %w", s, err)
	}
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return fmt.Errorf("topic filter %.80q: # is the last level only", s)
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return fmt.Errorf("topic filter %.80q: + and # each stand for whole levels, as in a/+/b and a/#", s)
		}
	}
	return nil
}

func check(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > MaxLength:
		return fmt.Errorf("has %d bytes, at most %d are possible", len(s), MaxLength)
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("holds the character NUL")
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.Count(s, "/") >= MaxLevels:
		return fmt.Errorf("has more than %d levels", MaxLevels)
	}
	return nil
}

// Reserved says whether a name or filter is of those that begin with $, which
// brokers keep for themselves (§4.7.2).
func Reserved(s string) bool { return strings.HasPrefix(s, "$") }

// Wild says whether a filter has wildcards.
func Wild(filter string) bool { return strings.ContainsAny(filter, "+#") }

// Match says whether a filter matches a name. Both must be well formed.
func Match(filter, name string) bool {
	if Reserved(name) && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, filterRest, filterMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		n, nameRest, nameMore := strings.Cut(name, "/")
		if f != "+" && f != n {
			return false
		}
		switch {
		case !filterMore && !nameMore:
			return true
		case !nameMore:
			return filterRest == "#" // it matches its parent, too
		case !filterMore:
			return false
		}
		filter, name = filterRest, nameRest
	}
}

// spelled writes two filters as what they come to, because no name is empty.
func spelled(filter string) string {
	switch filter {
	case "#":
		return "+/#"
	case "/#":
		return "/+/#"
	}
	return filter
}

// Covers says whether every name that inner matches is matched by outer as well.
func Covers(outer, inner string) bool {
	if Reserved(inner) && (outer[0] == '+' || outer[0] == '#') {
		return false
	}
	inner = spelled(inner)
	for {
		o, outerRest, outerMore := strings.Cut(outer, "/")
		if o == "#" {
			return true
		}
		i, innerRest, innerMore := strings.Cut(inner, "/")
		if i == "#" || i == "+" && o != "+" || i != "+" && o != "+" && o != i {
			return false
		}
		switch {
		case !outerMore && !innerMore:
			return true
		case !innerMore:
			return outerRest == "#"
		case !outerMore:
			return false
		}
		outer, inner = outerRest, innerRest
	}
}

// Overlap says whether there is a name that both filters match.
func Overlap(a, b string) bool {
	if Reserved(a) && (b[0] == '+' || b[0] == '#') || Reserved(b) && (a[0] == '+' || a[0] == '#') {
		return false
	}
	a, b = spelled(a), spelled(b)
	for {
		x, aRest, aMore := strings.Cut(a, "/")
		y, bRest, bMore := strings.Cut(b, "/")
		if x == "#" || y == "#" {
			return true
		}
		if x != y && x != "+" && y != "+" {
			return false
		}
		switch {
		case !aMore && !bMore:
			return true
		case !aMore:
			return bRest == "#"
		case !bMore:
			return aRest == "#"
		}
		a, b = aRest, bRest
	}
}

// Join returns a filter that covers both, and as little beyond as a filter can say
// level by level.
func Join(a, b string) string {
	if Covers(a, b) {
		return a
	}
	if Covers(b, a) {
		return b
	}
	var out []string
	for {
		x, aRest, aMore := strings.Cut(a, "/")
		y, bRest, bMore := strings.Cut(b, "/")
		switch {
		case x == "#" || y == "#":
			return strings.Join(append(out, "#"), "/")
		case x == y:
			out = append(out, x)
		default:
			out = append(out, "+")
		}
		switch {
		case !aMore && !bMore:
			return strings.Join(out, "/")
		case !aMore || !bMore:
			return strings.Join(append(out, "#"), "/")
		}
		a, b = aRest, bRest
	}
}

// Disjoint returns filters that together cover the given ones, no two of which overlap:
// a broker may send a message once for each filter that matches.
func Disjoint(filters []string) []string {
	var out []string
	for _, f := range filters {
		for {
			i := slices.IndexFunc(out, func(o string) bool { return Overlap(o, f) })
			if i < 0 {
				break
			}
			f = Join(out[i], f)
			out = slices.Delete(out, i, i+1)
		}
		out = append(out, f)
	}
	return out
}
