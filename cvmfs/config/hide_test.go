package config

import "testing"

func TestNoPasswordIsShown(t *testing.T) {
	for value, want := range map[string]string{
		"http://u:p@h:3128":               "http://…@h:3128",
		"u:p@h:3128|http://u:p@g;DIRECT":  "…@h:3128|http://…@g;DIRECT",
		"http://h:3128;u:p@g:3128|u:q@f":  "http://h:3128;…@g:3128|…@f",
		"http://s/cvmfs/@fqrn@":           "http://s/cvmfs/@fqrn@",
		"http://s:8000/cvmfs/@fqrn@;http": "http://s:8000/cvmfs/@fqrn@;http",
		"someone@example.org":             "someone@example.org",
	} {
		if got := hide(value); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
}
