package config

import "fmt"

// Kind is what kind a finding is of.
type Kind string

// Kinds of findings.
const (
	Failed     Kind = "failed"      // a line that isn't understood and has no effect
	NotHonored Kind = "not-honored" // a parameter that is set and should have an effect, and has none
	Unknown    Kind = "unknown"     // a parameter that nobody reads: misspelt, perhaps
	Odd        Kind = "odd"         // a value that is taken otherwise than it looks
	Unread     Kind = "unread"      // files that should have been read and could not
	Note       Kind = "note"        // anything else
)

// BuiltIn stands in a Place for Folder.Defaults.
const BuiltIn = "the built-in default.conf"

// Place is a place in a file.
type Place struct {
	File    string `json:"file"`           // as the host calls it
	Line    uint   `json:"line,omitempty"` // 0: none
	Network bool   `json:"network,omitempty"`
}

// String is FILE:LINE.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Finding is something in configuration files that their author should be told.
type Finding struct {
	Kind      Kind   `json:"kind"`
	Place     Place  `json:"place"`
	Parameter string `json:"parameter,omitempty"`
	Text      string `json:"text"` // quotes no value that may hold a password
}

// String is the finding as one line.
func (f Finding) String() string {
	text := f.Text
	if f.Parameter != "" {
		text = f.Parameter + ": " + text
	}
	if f.Place.File == "" {
		return text
	}
	return f.Place.String() + ": " + text
}
