package gotest

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShowKeepsFailuresSkipsAndClosingLines(t *testing.T) {
	events := `{"Action":"start","Package":"p"}
{"Action":"pass","Package":"p","Test":"TestQuick","Elapsed":0.9}
{"Action":"output","Package":"p","Test":"TestGood","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestGood/part","Elapsed":2}
{"Action":"pass","Package":"p","Test":"TestGood/other","Elapsed":0.5}
{"Action":"pass","Package":"p","Test":"TestGood","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    bad_test.go:1: why\n"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestBad","Elapsed":31}
{"Action":"output","Package":"p","Test":"TestAway","Output":"--- SKIP: TestAway (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestAway"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
{"Action":"output","Package":"q","Output":"PASS\n"}
{"Action":"output","Package":"q","Output":"ok  \tq\t0.2s\n"}
{"Action":"pass","Package":"q"}
{"Action":"output","Package":"r","Output":"?   \tr\t[no test files]\n"}
{"Action":"skip","Package":"r"}
{"ImportPath":"s","Action":"build-output","Output":"s.go:1: syntax error\n"}
`
	want := `    bad_test.go:1: why
--- FAIL: TestBad (0.00s)
--- SKIP: TestAway (0.00s)
FAIL	p	0.1s
ok  	q	0.2s
?   	r	[no test files]
s.go:1: syntax error
`
	var got strings.Builder
	summary, err := Show(&got, strings.NewReader(events))
	if err != nil {
		t.Fatal(err)
	}
	skip := Skip{"p", "TestAway", "--- SKIP: TestAway (0.00s)\n"}
	if summary.Passed != 4 || summary.Failed != 1 || !slices.Equal(summary.Skipped, []Skip{skip}) {
		t.Errorf("%+v", summary)
	}
	if slow := summary.Slowest(5); !slices.Equal(slow, []string{"  31.0 s  p TestBad", "   2.5 s  p TestGood"}) {
		t.Errorf("the slowest are %q", slow)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestShowSaysWhenTheStreamIsTorn(t *testing.T) {
	if _, err := Show(new(strings.Builder), strings.NewReader(`{"Action":"pa`)); err == nil {
		t.Error("a torn stream was taken for a whole one")
	}
}

func TestShowKeepsWhatATestSaidThatHasNotEnded(t *testing.T) {
	events := `{"Action":"output","Package":"p","Test":"TestGood","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestLate","Output":"panic: test timed out after 6m0s\n"}
{"Action":"output","Package":"p","Test":"TestLate/sub","Output":"=== RUN   TestLate/sub\n"}
{"Action":"output","Package":"q","Test":"TestOther","Output":"of another package\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t360.0s\n"}
{"Action":"fail","Package":"p"}
`
	want := `panic: test timed out after 6m0s
--- FAIL: TestLate (unfinished)
=== RUN   TestLate/sub
--- FAIL: TestLate/sub (unfinished)
FAIL	p	360.0s
of another package
--- FAIL: TestOther (unfinished)
`
	var got strings.Builder
	summary, err := Show(&got, strings.NewReader(events))
	if err != nil || summary.Passed != 1 || summary.Failed != 3 {
		t.Errorf("%+v, %v", summary, err)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}
