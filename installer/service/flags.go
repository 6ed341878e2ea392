package service

import "strings"

// Flag is a flag on the engine's command line.
type Flag struct {
	Name  string // the long name, without dashes
	Value string // "" if it has none
}

// shorthands are the engine's, of all versions.
var shorthands = map[byte]string{
	'b': "bridge", 'D': "debug", 'g': "graph", 'G': "group", 'H': "host", 'l': "log-level", 'p': "pidfile",
	'r': "restart",
	's': "storage-driver", 'v': "version",
}

// switches are the shorthands that take no value.
const switches = "Drv"

// ParseFlags takes the engine's arguments apart. The engine has no arguments but flags, so that what doesn't begin with
// a dash is the value of the flag before it.
func ParseFlags(args []string) []Flag {
	var flags []Flag
	value := func(i *int) string {
		if *i+1 < len(args) && !strings.HasPrefix(args[*i+1], "-") {
			*i++
			return args[*i]
		}
		return ""
	}
	for i := 0; i < len(args); i++ { //nolint:intrange // value may take the next one
		arg := args[i]
		switch {
		case arg == "--":
			return flags
		case strings.HasPrefix(arg, "--"):
			name, v, inline := strings.Cut(arg[2:], "=")
			if !inline {
				v = value(&i)
			}
			flags = append(flags, Flag{name, v})
		case strings.HasPrefix(arg, "-"):
			letters := arg[1:]
			for len(letters) > 0 && strings.Contains(switches, letters[:1]) && !strings.HasPrefix(letters[1:], "=") {
				flags = append(flags, Flag{Name: shorthands[letters[0]]})
				letters = letters[1:]
			}
			if letters == "" {
				continue
			}
			name, known := shorthands[letters[0]]
			if !known {
				name = letters[:1]
			}
			v := strings.TrimPrefix(letters[1:], "=")
			if letters[1:] == "" {
				v = value(&i)
			}
			flags = append(flags, Flag{name, v})
		}
	}
	return flags
}

// ConfigFile returns the configuration file that the flags name, or the engine's default.
func ConfigFile(flags []Flag) string {
	path := defaultConfigFile
	for _, f := range flags {
		if f.Name == "config-file" {
			path = f.Value
		}
	}
	return path
}

const defaultConfigFile = "/etc/docker/daemon.json"
