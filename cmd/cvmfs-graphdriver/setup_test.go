package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/installer"
)

func TestStepsAreShownAsTheOutputCan(t *testing.T) {
	events := []installer.Event{
		{Step: "enable", Outcome: installer.Begins},
		{Step: "enable", Outcome: installer.Unchanged},
		{Step: "restart", Outcome: installer.Begins},
	}
	for range seldom + 1 {
		events = append(events, installer.Event{Step: "restart", Outcome: installer.Waits, Text: "for it"})
	}
	events = append(events, installer.Event{Step: "restart", Outcome: installer.Failed, Text: "it fails\nfor good"})

	waits := strings.Repeat("\r\x1b[Krestart         waits     for it", seldom+1)
	for name, c := range map[string]struct {
		printer printer
		want    string
	}{
		"lines": {printer{}, "enable          unchanged\n" +
			"restart         waits     for it\n" +
			"restart         failed\n"},
		"terminal": {printer{terminal: true}, "enable          …\r\x1b[Kenable          unchanged\n" +
			"restart         …" + waits + "\r\x1b[Krestart         failed\n"},
		"json": {printer{json: true}, `{"step":"enable","outcome":"unchanged"}` + "\n" +
			strings.Repeat(`{"step":"restart","outcome":"waits","text":"for it"}`+"\n", seldom+1) +
			`{"step":"restart","outcome":"failed","text":"it fails\nfor good"}` + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			p := c.printer
			p.out = &out
			for _, e := range events {
				p.tell(e)
			}
			if d := cmp.Diff(c.want, out.String()); d != "" {
				t.Error(d)
			}
		})
	}
}
