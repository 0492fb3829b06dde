package matrix

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/canonicaljson"
)

func nested(open, inner, end string, n int) string {
	return strings.Repeat(open, n) + inner + strings.Repeat(end, n)
}

func TestJSON(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"an object":                {`{"a":[1,{"b":"c:\"{[["}],"é":null}`, ""},
		"64 levels":                {nested("[", "1", "]", 64), ""},
		"65 levels":                {nested("[", "1", "]", 65), "M_BAD_JSON: the JSON is nested"},
		"65 levels of objects":     {nested(`{"a":`, "1", "}", 65), "M_BAD_JSON: the JSON is nested"},
		"a bomb without end":       {strings.Repeat("[", 1<<20), "M_BAD_JSON: the JSON is nested"},
		"brackets in a string":     {`"` + strings.Repeat("[{", 1000) + `"`, ""},
		"behind an escaped quote":  {`"\"` + strings.Repeat("[", 1000) + `"`, ""},
		"behind a backslash":       {`["\\",` + strings.Repeat("[", 100), "M_BAD_JSON: the JSON is nested"},
		"many that close":          {strings.Repeat("]", 100), "M_NOT_JSON"},
		"most members":             {"{" + strings.Repeat(`"":0,`, maxMembers-1) + `"":0}`, ""},
		"a member more":            {"{" + strings.Repeat(`"":0,`, maxMembers) + `"":0}`, "M_TOO_LARGE"},
		"empty":                    {"", "M_NOT_JSON"},
		"two values":               {"{}{}", "M_NOT_JSON"},
		"text":                     {"hello", "M_NOT_JSON"},
		"a string without end":     {`"a`, "M_NOT_JSON"},
		"an escape without end":    {`"a\`, "M_NOT_JSON"},
		"a control byte":           {"\"\n\"", "M_NOT_JSON"},
		"NUL":                      {"{}\x00", "M_NOT_JSON"},
		"no UTF-8":                 {"\"\xff\"", "M_NOT_JSON: the body is no UTF-8"},
		"a surrogate pair":         {`"\ud83D\uDE00"`, ""},
		"a high surrogate":         {`"\ud83d"`, "M_BAD_JSON: the JSON has half"},
		"a high surrogate, text":   {`"\ud83dabcdef"`, "M_BAD_JSON: the JSON has half"},
		"a low surrogate":          {`"\ude00"`, "M_BAD_JSON: the JSON has half"},
		"two high surrogates":      {`"\ud83d\ud83d"`, "M_BAD_JSON: the JSON has half"},
		"a backslash, no escape":   {`"\\ud83d"`, ""},
		"a wrong escape":           {`"\u12g4"`, "M_NOT_JSON"},
		"a surrogate without rest": {`"\ud83d\u"`, "M_BAD_JSON: the JSON has half"},
	} {
		got := ""
		if _, err := checkJSON([]byte(c.body)); err != nil {
			got = err.Error()
		}
		if (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestJSONOrderTakesMemory is why members are counted: this is what costOfOrder
// is about.
func TestJSONOrderTakesMemory(t *testing.T) {
	body := []byte("{" + strings.Repeat(`"":0,`, maxMembers-1) + `"":0}`)
	members, err := checkJSON(body)
	if err != nil || members != maxMembers {
		t.Fatal(members, err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	canonicaljson.CanonicalJSONAssumeValid(body)
	runtime.ReadMemStats(&after)
	// TotalAlloc has the garbage of growing, too, of which the most part is dead when
	// the last of it is made: append grows by a quarter, and so leaves four times of it.
	got, cost := after.TotalAlloc-before.TotalAlloc, uint64(costOfOrder(len(body), members))
	if got/4 > cost || got < cost {
		t.Errorf("%d MiB allocated, cost %d MiB", got>>20, cost>>20)
	}
}

// FuzzJSON: what passes has a canonical form that says the same.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":[{"\u0061":"\ud83d\ude00"}]}`, `"\ud800"`, `["\\",[[]]]`, `{"a":{"a":{"a":"\/"}}}`, "\"\x7f\"", `{"\"":1e5}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := checkJSON(body); err != nil {
			return
		}
		canonical := canonicaljson.CanonicalJSONAssumeValid(body)
		var want, got any
		if err := json.Unmarshal(body, &want); err != nil {
			if strings.Contains(err.Error(), "cannot unmarshal number") {
				return // more than a float64 holds
			}
			t.Fatalf("%q passes: %v", body, err)
		}
		if err := json.Unmarshal(canonical, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", body, canonical, err)
		}
		if duplicates(body) {
			return // the last one counts, and which that is may change
		}
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(got)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q becomes %q", body, canonical)
		}
	})
}

// duplicates says whether an object of the body has fewer members than it shows.
func duplicates(body []byte) bool {
	var v any
	if json.Unmarshal(body, &v) != nil {
		return false
	}
	shown, d := 0, json.NewDecoder(bytes.NewReader(body))
	for {
		tok, err := d.Token()
		if err != nil {
			break
		}
		if _, ok := tok.(json.Delim); !ok {
			shown++
		}
	}
	return shown != count(v)
}

// count is how many tokens but delimiters v has.
func count(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, m := range v {
			n += 1 + count(m)
		}
	case []any:
		for _, m := range v {
			n += count(m)
		}
	default:
		n = 1
	}
	return n
}
