package service

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entry is a line of the engine's log.
type entry struct {
	at      time.Time // zero if it has none
	level   string    // "" if the line isn't in the engine's own format, as its last words are
	message string    // with the error, if the line has one
	driver  string    // the storage driver it is about, "" for none
}

// field is one of a line in the engine's text format: name=value or name="quoted value".
var field = regexp.MustCompile(`([\w-]+)=("(?:[^"\\]|\\.)*"|\S*)`)

// parse takes a line apart, in the engine's text or JSON format. What stands before it, as a journal's date, is
// skipped.
func parse(line string) entry {
	line = strings.TrimSpace(line)
	fields := map[string]string{}
	if strings.HasPrefix(line, "{") {
		var all map[string]any
		if json.Unmarshal([]byte(line), &all) == nil {
			for name, value := range all {
				fields[name], _ = value.(string)
			}
		}
	} else if i := strings.Index(line, "time="); i >= 0 {
		for _, f := range field.FindAllStringSubmatch(line[i:], -1) {
			value := f[2]
			if unquoted, err := strconv.Unquote(value); err == nil {
				value = unquoted
			}
			fields[f[1]] = value
		}
	}
	if fields["msg"] == "" {
		return entry{message: line}
	}
	e := entry{level: fields["level"], message: fields["msg"], driver: fields["storage-driver"]}
	if err := fields["error"]; err != "" && !strings.Contains(e.message, err) {
		e.message += ": " + err
	}
	if e.driver == "" {
		e.driver = fields["driver"]
	}
	e.at, _ = time.Parse(time.RFC3339Nano, fields["time"]) // zero if it isn't one
	return e
}

// timeOf returns the time in a line.
func timeOf(line string) (time.Time, bool) {
	at := parse(line).at
	return at, !at.IsZero()
}

// lastStart returns the lines of the engine's last start.
func lastStart(log string) []entry {
	var entries []entry
	for line := range strings.Lines(log) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		e := parse(line)
		if e.message == "Starting up" {
			entries = nil
		}
		entries = append(entries, e)
	}
	return entries
}

// lastWords are how the line begins with which an engine ends that doesn't start.
var lastWords = regexp.MustCompile(`(?:^|[\]:] )(failed to start daemon: |unable to configure the Docker daemon |failed to load listener|` +
	`Error starting daemon: |panic: |fatal error: |unknown (?:shorthand )?flag: |unable to parse logging level: )`)

// fatal tells the line with which an engine ends. Afterwards only systemd has something to say.
func fatal(e entry) bool {
	return e.level == "fatal" || e.level == "panic" || e.level == "" && lastWords.MatchString(e.message)
}

// gaveUp reports whether the last start in a log came to nothing.
func gaveUp(log string) bool { return slices.ContainsFunc(lastStart(log), fatal) }

// maxCause bounds a cause, in bytes.
const maxCause = 2000

// Cause tells from an engine's log why its last start failed, in one line; "" if the log doesn't say. The line with
// which the engine ends says only that a storage driver isn't supported; why is in a line before it.
func Cause(log string) string {
	cause := strings.Join(strings.Fields(strings.ToValidUTF8(causeIn(lastStart(log)), "?")), " ")
	if len(cause) > maxCause {
		cause = strings.ToValidUTF8(cause[:maxCause], "") + "…"
	}
	return cause
}

func causeIn(entries []entry) string {
	// One that doesn't get as far as to say that it starts says this after the end of the one before.
	last := len(entries) - 1
	for last >= 0 && !fatal(entries[last]) {
		last--
	}
	if last < 0 {
		return ""
	}
	end := entries[last].message
	if at := lastWords.FindStringSubmatchIndex(end); at != nil {
		end = end[at[2]:]
	}
	if !strings.Contains(end, "graphdriver") && !strings.Contains(end, "driver not supported") {
		return end
	}
	for _, e := range slices.Backward(entries[:last]) {
		if why, ok := strings.CutPrefix(e.message, "Failed to GetDriver graph: "); ok {
			return why
		}
		if strings.HasPrefix(e.message, "[graphdriver] prior storage driver") && e.level == "error" {
			return e.message
		}
	}
	return end
}
