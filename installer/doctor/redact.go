package doctor

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// removed stands where a secret stood.
const removed = "(removed)"

// leastSecret is the shortest value that is removed wherever it stands; shorter ones would make holes in ordinary
// words.
const leastSecret = 6

// Redactor removes secrets from text: what looks like one by its form or by the name before it, and everywhere the
// values that it was shown to be secret. The zero value is ready.
type Redactor struct {
	secrets []string
}

// Words in the names of settings whose values are secret, in lower case.
var secretNames = []string{
	"password", "passwd", "passphrase", "secret", "token", "accesskey", "access_key", "access-key", "apikey", "api_key",
	"api-key",
	"credential", "privatekey", "private_key", "private-key",
}

// secretName reports whether a setting's value is secret. "auth" and "auths" are Docker's.
func secretName(name string) bool {
	name = strings.ToLower(name)
	return name == "auth" || name == "auths" || name == "authorization" || strings.HasSuffix(name, "_auth") ||
		slices.ContainsFunc(secretNames, func(word string) bool { return strings.Contains(name, word) })
}

// Learn notes the secret values of a JSON text. Text that is no JSON teaches nothing.
func (r *Redactor) Learn(text []byte) {
	var v any
	if json.Unmarshal(text, &v) == nil {
		r.learn(v, false)
	}
}

func (r *Redactor) learn(v any, secret bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			r.learn(inner, secret || secretName(name))
		}
	case []any:
		for _, inner := range v {
			r.learn(inner, secret)
		}
	case string:
		if secret && len(v) >= leastSecret {
			r.secrets = append(r.secrets, v)
		}
	}
}

// LearnAddresses notes the passwords in addresses of a text, which may come again in another form.
func (r *Redactor) LearnAddresses(text []byte) {
	for _, pattern := range []*regexp.Regexp{inAddress, inProxy} {
		for _, m := range pattern.FindAllSubmatch(text, -1) {
			if _, password, ok := strings.Cut(string(m[2]), ":"); ok && len(password) >= leastSecret {
				r.secrets = append(r.secrets, password)
			}
		}
	}
}

// Forms of secrets. What is kept is the first group, what is removed the second.
var (
	inAddress = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/"'|;,@]*(?:@[^\s/"'|;,@]*)*)@`)
	inProxy   = regexp.MustCompile(`(^|[\s"'|;,=])([^\s/"'|;,=@:]+:[^\s/"'|;,@]+)@`)
	named     = regexp.MustCompile(`(?i)(\b["']?(?:[\w.-]*(?:` + strings.Join(secretNames, "|") +
		`)[\w.-]*|auths?|authorization|\w+_auth)\\*["']?\s*[:=]\s*)(\\+"[^"\\]*\\+"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'\\,;}&{\[]+)`)
	opening    = regexp.MustCompile(`^\\*["']?`)
	bearer     = regexp.MustCompile(`(?i)\b((?:authorization:\s*)?(?:bearer|basic)\s+)([A-Za-z0-9._~+/=-]{8,})`)
	signature  = regexp.MustCompile(`(?i)([?&](?:x-amz-(?:signature|credential|security-token)|sig|signature)=)([^&\s"'\\]+)`)
	privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`)
)

// Redact returns the text without secrets.
func (r *Redactor) Redact(text []byte) []byte {
	s := string(privateKey.ReplaceAll(text, []byte(removed)))
	// The longest first: one may be part of another.
	secrets := slices.Clone(r.secrets)
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, secret := range slices.Compact(secrets) {
		s = strings.ReplaceAll(s, secret, removed)
		if quoted, err := json.Marshal(secret); err == nil { // as in JSON, with escapes
			s = strings.ReplaceAll(s, string(quoted[1:len(quoted)-1]), removed)
		}
	}
	s = inAddress.ReplaceAllString(s, "${1}"+removed+"@")
	s = inProxy.ReplaceAllString(s, "${1}"+removed+"@")
	s = bearer.ReplaceAllString(s, "${1}"+removed)
	s = named.ReplaceAllStringFunc(s, func(found string) string {
		m := named.FindStringSubmatch(found)
		quote := opening.FindString(m[2])
		return m[1] + quote + removed + quote
	})
	s = signature.ReplaceAllString(s, "${1}"+removed)
	return []byte(s)
}

// RedactJSON returns a value as indented JSON, its texts without secrets.
func (r *Redactor) RedactJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var plain any
	if err := d.Decode(&plain); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = writeJSON(&out, r.redacted(plain, false))
	return out.Bytes(), err
}

func (r *Redactor) redacted(v any, secret bool) any {
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			v[name] = r.redacted(inner, secret || secretName(name))
		}
	case []any:
		for i, inner := range v {
			v[i] = r.redacted(inner, secret)
		}
	case string:
		if secret && v != "" {
			return removed
		}
		return string(r.Redact([]byte(v)))
	}
	return v
}
