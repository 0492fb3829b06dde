package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

type position struct{ line, column int }

// reader turns YAML nodes into Go values by their types and remembers where each
// value stood. yaml's own decoder stops at the first mistake of some kinds, gives
// lines without columns, and lets an empty value pass as nothing: all three matter
// to whoever has to mend the file.
type reader struct {
	file     string
	lines    []string
	pos      map[string]position
	problems Problems
	unread   bool // the text is not YAML, or not a set of keys
}

// note records a mistake, unless the text itself was already at fault there.
func (r *reader) note(p Problem) {
	if p.Line > 0 && slices.ContainsFunc(r.problems, func(q Problem) bool {
		return q.Key == "" && q.Line == p.Line && q.Column == p.Column
	}) {
		return
	}
	r.problems = append(r.problems, p)
}

// fail notes a mistake at a node.
func (r *reader) fail(n *yaml.Node, key, format string, args ...any) {
	r.note(Problem{r.file, n.Line, n.Column, key, fmt.Sprintf(format, args...)})
}

// failAt notes a mistake in the value that was read at key, or that is missing.
func (r *reader) failAt(key, format string, args ...any) {
	for k := key; ; {
		if p, ok := r.pos[k]; ok {
			file := r.file
			if p.line == 0 {
				file = "environment"
			}
			r.note(Problem{file, p.line, p.column, key, fmt.Sprintf(format, args...)})
			return
		}
		i := strings.LastIndexAny(k, ".[")
		if i < 0 {
			break
		}
		k = k[:i]
	}
	r.problems = append(r.problems, Problem{r.file, 1, 1, key, fmt.Sprintf(format, args...)})
}

// value decodes one node into dst.
func (r *reader) value(n *yaml.Node, key string, dst reflect.Value) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		r.fail(n, key, "anchors and aliases (& and *) are not used here; write the value out, or quote a value that begins with & or *")
		return
	}
	r.pos[key] = position{n.Line, n.Column}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		r.empty(n, key, dst.Kind())
		return
	}
	if n.Kind == yaml.ScalarNode && n.Style&yaml.TaggedStyle != 0 {
		if at := r.from(n); roomID(at) {
			r.note(Problem{r.file, n.Line, n.Column, "", unquoted(at)})
			return
		}
		r.fail(n, key, "type tags (!) are not used here; remove it, or quote a value that begins with !")
		return
	}
	if _, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		r.scalar(n, key, dst)
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		r.value(n, key, dst.Elem())
	case reflect.Struct:
		r.mapping(n, key, dst)
	case reflect.Map:
		r.table(n, key, dst)
	case reflect.Slice:
		r.list(n, key, dst)
	default:
		r.scalar(n, key, dst)
	}
}

// from returns the text of a node's line from where the node begins.
func (r *reader) from(n *yaml.Node) []byte {
	if n.Line < 1 || n.Line > len(r.lines) {
		return nil
	}
	line := []rune(r.lines[n.Line-1])
	return []byte(string(line[min(n.Column-1, len(line)):])) // columns are characters
}

// empty reports a value that is not there: YAML takes what follows an unquoted #
// as a comment. A section in which every line is a comment is left as it was.
func (r *reader) empty(n *yaml.Node, key string, kind reflect.Kind) {
	if n.Line >= 1 && n.Line <= len(r.lines) {
		if line := []rune(r.lines[n.Line-1]); n.Column-1 <= len(line) { // columns are characters
			before := strings.TrimLeft(string(line[n.Column-1:]), " \t-")
			rest := []rune(strings.TrimLeft(strings.TrimPrefix(before, ":"), " \t"))
			if len(rest) > 1 && rest[0] == '#' && rest[1] != ' ' {
				r.note(Problem{r.file, n.Line, len(line) - len(rest) + 1, key,
					fmt.Sprintf("the value is empty, because an unquoted # begins a comment; quote it: %q", strings.Fields(string(rest))[0])})
				return
			}
		}
	}
	if kind == reflect.Struct || kind == reflect.Map {
		return
	}
	r.fail(n, key, "the value is empty; give one or remove the key (a value that begins with # or @ must be quoted)")
}

// keys calls each for every pair of a mapping whose key is new and plain.
func (r *reader) keys(n *yaml.Node, key string, each func(k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.fail(n, key, "this is %s; want keys and values on lines of their own, indented", describe(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Value == "" {
			r.fail(k, key, "a key must be one plain word")
			continue
		}
		if first, dup := seen[k.Value]; dup {
			r.fail(k, join(key, k.Value), "the key stands here a second time; the first is on line %d: keep one of them", first)
			continue
		}
		seen[k.Value] = k.Line
		each(k, v)
	}
}

func (r *reader) mapping(n *yaml.Node, key string, dst reflect.Value) {
	fields := map[string]int{}
	var allowed []string
	for i := range dst.NumField() {
		if name := dst.Type().Field(i).Tag.Get("yaml"); name != "-" {
			fields[name] = i
			allowed = append(allowed, name)
		}
	}
	r.keys(n, key, func(k, v *yaml.Node) {
		i, ok := fields[k.Value]
		if !ok {
			hint := ""
			if near := nearest(k.Value, allowed); near != "" {
				hint = fmt.Sprintf(" (did you mean %q?)", near)
			}
			r.fail(k, join(key, k.Value), "unknown key%s; allowed here: %s", hint, strings.Join(allowed, ", "))
			return
		}
		r.value(v, join(key, k.Value), dst.Field(i))
	})
}

func (r *reader) table(n *yaml.Node, key string, dst reflect.Value) {
	dst.Set(reflect.MakeMap(dst.Type()))
	r.keys(n, key, func(k, v *yaml.Node) {
		at := join(key, k.Value)
		e := reflect.New(dst.Type().Elem()).Elem()
		r.value(v, at, e)
		r.pos[at] = position{k.Line, k.Column} // mistakes in the name itself
		dst.SetMapIndex(reflect.ValueOf(k.Value), e)
	})
}

func (r *reader) list(n *yaml.Node, key string, dst reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		r.fail(n, key, "this is %s; want a list: [one, two], or each on a line of its own after \"- \"", describe(n))
		return
	}
	out := reflect.MakeSlice(dst.Type(), len(n.Content), len(n.Content))
	for i, e := range n.Content {
		r.value(e, fmt.Sprintf("%s[%d]", key, i), out.Index(i))
	}
	dst.Set(out)
}

func (r *reader) scalar(n *yaml.Node, key string, dst reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		r.fail(n, key, "this is %s; want %s", describe(n), want(dst.Type()))
		return
	}
	if dst.Kind() == reflect.Bool && n.ShortTag() != "!!bool" {
		r.fail(n, key, "%q is neither true nor false", n.Value)
		return
	}
	if err := setText(dst, n.Value); err != nil {
		r.fail(n, key, "%v", err)
	}
}

// setText gives dst the value that text means for its type.
func setText(dst reflect.Value, text string) error {
	if u, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			if dst.Type() == reflect.TypeFor[netip.AddrPort]() {
				return fmt.Errorf("%q is not an address with a port; write it as 127.0.0.1:5269 or [::1]:5269", text)
			}
			return err
		}
		return nil
	}
	switch dst.Kind() {
	case reflect.String:
		dst.SetString(text)
		return nil
	case reflect.Bool:
		if text == "true" || text == "false" {
			dst.SetBool(text == "true")
			return nil
		}
	case reflect.Int:
		if v, err := strconv.ParseInt(text, 10, 32); err == nil {
			dst.SetInt(v)
			return nil
		}
	case reflect.Uint16:
		if v, err := strconv.ParseUint(text, 10, 16); err == nil {
			dst.SetUint(v)
			return nil
		}
	case reflect.Float64:
		if v, err := strconv.ParseFloat(text, 64); err == nil {
			dst.SetFloat(v)
			return nil
		}
	}
	return fmt.Errorf("%q is not right here; want %s", text, want(dst.Type()))
}

// want names what a type is written as.
func want(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Size]():
		return "a size such as 256KiB"
	case reflect.TypeFor[netip.AddrPort]():
		return "an address with a port such as 127.0.0.1:5269"
	case reflect.TypeFor[Duration]():
		return "a duration such as 12h or 7d"
	case reflect.TypeFor[Prefix]():
		return "an address or a range such as 10.0.0.0/8"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Uint16:
		return "a port number, 0 to 65535"
	case reflect.Float64:
		return "a number"
	}
	return "one line of text"
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a set of keys"
	case yaml.SequenceNode:
		return "a list"
	}
	return "the single value " + strconv.Quote(n.Value)
}

func join(key, part string) string {
	if key == "" {
		return part
	}
	return key + "." + part
}

// environment sets every field whose env tag names a variable that is present.
func (r *reader) environment(c *Config, env func(string) (string, bool)) {
	r.override(reflect.ValueOf(c).Elem(), "", env)
}

func (r *reader) override(v reflect.Value, key string, env func(string) (string, bool)) {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag
		at := join(key, tag.Get("yaml"))
		if f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		name := tag.Get("env")
		if name == "" {
			if f.Kind() == reflect.Struct && tag.Get("yaml") != "-" && f.Type().PkgPath() == v.Type().PkgPath() {
				r.override(f, at, env)
			}
			continue
		}
		text, ok := env(name)
		if !ok {
			continue
		}
		r.pos[at] = position{}
		if f.Kind() == reflect.Slice {
			f.Set(reflect.ValueOf(slices.Clip(strings.Fields(text))))
		} else if err := setText(f, text); err != nil {
			r.problems = append(r.problems, Problem{File: "environment", Key: name, Text: err.Error()})
		}
	}
}
