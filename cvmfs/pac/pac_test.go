package pac

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/robertkrimen/otto"
)

// probing makes the test's program try, confined, what a script's process must not do.
const probing = "TEST_PROBES_CONFINEMENT"

func TestMain(m *testing.M) {
	Main()
	if os.Getenv(probing) != "" {
		probe()
	}
	os.Exit(m.Run())
}

// hosts are the names there are.
func hosts(_ context.Context, name string) ([]netip.Addr, error) {
	switch name {
	case "s1.example.org":
		return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.7")}, nil
	case "six.example.org":
		return []netip.Addr{netip.MustParseAddr("2001:db8::6")}, nil
	}
	return nil, errors.New("no such host")
}

func ask(t *testing.T, script string, names ...string) ([]string, error) {
	t.Helper()
	var questions []Question
	for _, name := range names {
		questions = append(questions, Question{URL: "http://" + name + "/cvmfs/images.example.org/.cvmfspublished", Host: name})
	}
	return Script{Text: []byte(script), Resolve: hosts}.Evaluate(t.Context(), questions)
}

// Ranges of time are in the host's time zone: that of TZ, or else of its files, for which TZ must not be there.
func TestTimeZoneIsThatOfTheHost(t *testing.T) {
	t.Setenv("TZ", "Europe/Zurich")
	if !slices.Contains(environ(), "TZ=Europe/Zurich") {
		t.Errorf("%q", environ())
	}
	if err := os.Unsetenv("TZ"); err != nil { // Setenv puts it back
		t.Fatal(err)
	}
	if slices.ContainsFunc(environ(), func(v string) bool { return strings.HasPrefix(v, "TZ=") }) {
		t.Errorf("%q", environ())
	}
}

func TestScriptAnswersForEachServer(t *testing.T) {
	t.Parallel()
	got, err := ask(t, `
		// what sites write
		var site = { lhcone: "PROXY squid1:3128; PROXY squid2:3128", other: "DIRECT" };
		function inside(host) { return isInNet(dnsResolve(host), "198.51.100.0", "255.255.255.0"); }
		function FindProxyForURL(url, host) {
			if (shExpMatch(url, "*/cvmfs/*/.cvmfspublished") && inside(host)) return site.lhcone;
			if (/^s[2-4]\./.test(host)) { return "PROXY " + host.split(".")[0] + ":80"; }
			return site.other;
		}`, "s1.example.org", "s2.example.org", "s9.example.org")
	want := []string{"PROXY squid1:3128; PROXY squid2:3128", "PROXY s2:80", "DIRECT"}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// Each line is an expression that must be true.
func TestFunctionsOfScripts(t *testing.T) {
	t.Parallel()
	lines := `isPlainHostName("www")
!isPlainHostName("www.example.org")
dnsDomainIs("www.example.org", ".example.org")
!dnsDomainIs("www", ".example.org")
!dnsDomainIs("www.badexample.org", ".example.org")
localHostOrDomainIs("www.example.org", "www.example.org")
localHostOrDomainIs("www", "www.example.org")
!localHostOrDomainIs("www.example.net", "www.example.org")
!localHostOrDomainIs("home.example.org", "www.example.org")
dnsDomainLevels("www") == 0
dnsDomainLevels("www.example.org") == 2
isResolvable("s1.example.org")
!isResolvable("nobody.example.org")
!isResolvable("six.example.org")
isResolvableEx("six.example.org")
dnsResolve("s1.example.org") == "198.51.100.7"
dnsResolve("192.0.2.3") == "192.0.2.3"
dnsResolve("nobody.example.org") === null
dnsResolveEx("s1.example.org") == "2001:db8::1;198.51.100.7"
dnsResolveEx("nobody.example.org") === ""
isInNet("s1.example.org", "198.51.100.7", "255.255.255.255")
isInNet("198.51.100.99", "198.51.0.0", "255.255.0.0")
!isInNet("198.52.100.99", "198.51.0.0", "255.255.0.0")
!isInNet("nobody.example.org", "0.0.0.0", "0.0.0.0")
isInNetEx("2001:db8::6", "2001:db8::/32")
!isInNetEx("2001:db9::6", "2001:db8::/32")
!isInNetEx("rubbish", "2001:db8::/32")
convert_addr("1.2.3.4") == 16909060
sortIpAddressList("10.0.0.2;2001:db8::1;10.0.0.1") == "2001:db8::1;10.0.0.1;10.0.0.2"
sortIpAddressList("rubbish") === false
/^\d+\.\d+\.\d+\.\d+$/.test(myIpAddress())
typeof myIpAddressEx() == "string"
shExpMatch("http://a/b/c.html", "*/b/*")
shExpMatch("http://a/b/c.html", "http://?/*.html")
!shExpMatch("http://a/b/c.html", "*/x/*")
!shExpMatch("abc", "b")
shExpMatch("a.b", "a.b") && !shExpMatch("axb", "a.b")
shExpMatch("", "*") && !shExpMatch("", "?")
weekdayRange("SUN", "SAT")
weekdayRange("MON", "SUN", "GMT")
!weekdayRange("XYZ")
dateRange(1, 31)
dateRange("JAN", "DEC")
!dateRange(1995)
timeRange(0, 23)
timeRange(0, 0, 23, 59, "GMT")
alert("to nobody") == null`
	expressions := strings.Split(lines, "\n")
	script := "function FindProxyForURL(url, host) {\n\tvar wrong = '';\n"
	for i, e := range expressions {
		script += fmt.Sprintf("\tif (!(%s)) wrong += '%d ';\n", e, i)
	}
	got, err := ask(t, script+"\treturn wrong;\n}", "s1.example.org")
	if err != nil {
		t.Fatal(err)
	}
	for i := range strings.FieldsSeq(got[0]) {
		var n int
		fmt.Sscan(i, &n)
		t.Errorf("not true: %s", expressions[n])
	}
}

func TestTimesOfScripts(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("", 2*3600)
	e := &environment{now: time.Date(2026, time.November, 30, 0, 30, 15, 0, zone)} // a Monday; Sunday in GMT
	vm := otto.New()
	for name, f := range e.functions() {
		if err := vm.Set(name, wrapped(vm, f)); err != nil {
			t.Fatal(err)
		}
	}
	for call, want := range map[string]bool{
		`weekdayRange("MON")`: true, `weekdayRange("MON", "GMT")`: false, `weekdayRange("SUN", "GMT")`: true,
		`weekdayRange("FRI", "MON")`: true, `weekdayRange("TUE", "SUN")`: false, `weekdayRange()`: false,
		`dateRange(30)`: true, `dateRange(29)`: false, `dateRange(29, "GMT")`: true, `dateRange("NOV")`: true,
		`dateRange("OCT", "FEB")`: true, `dateRange("FEB", "OCT")`: false, `dateRange(2026)`: true,
		`dateRange(2024, 2025)`: false, `dateRange(1, "NOV", 30, "NOV")`: true, `dateRange(15, "DEC", 15, "JAN")`: false,
		`dateRange("NOV", 2026, "DEC", 2027)`: true, `dateRange(30, "NOV", 2026)`: true, `dateRange(29, "NOV", 2026)`: false,
		`dateRange(1, "JAN", 2026, 29, "NOV", 2026)`: false, `dateRange(25, 5)`: true, `dateRange("rubbish")`: false,
		`timeRange(0)`: true, `timeRange(22, "GMT")`: true, `timeRange(22, 2)`: true, `timeRange(1, 5)`: false,
		`timeRange(0, 29, 0, 30)`: true, `timeRange(0, 31, 23, 0)`: false, `timeRange(23, 0, 0, 30, 0, 15)`: false,
		`timeRange(23, 0, 0, 0, 30, 15)`: true, `timeRange(23, 0, 0, 0, 30, 14)`: false, `timeRange("x")`: false,
	} {
		v, err := vm.Run(call)
		if got, _ := v.ToBoolean(); err != nil || got != want {
			t.Errorf("%s: %v, %v", call, v, err)
		}
	}
}

// Whatever a script does there is an error soon, and this process is none the worse.
func TestHostileScriptsGiveNoAnswer(t *testing.T) {
	t.Parallel()
	const answer = "\nfunction FindProxyForURL(url, host) { return 'DIRECT'; }"
	for name, script := range map[string]string{
		"loops":              "while (true) {}",
		"loops when asked":   "function FindProxyForURL() { for (;;); }",
		"recursion":          "function f() { return f() + 1; } f();" + answer,
		"much memory":        "var a = []; while (true) a.push(new Array(1000).join('x') + a.length);",
		"a long string":      "var s = 'x'; while (true) s += s;",
		"a long array":       "var a = []; for (var i = 0; i < 1e9; i++) a[i] = i;",
		"deep nesting":       strings.Repeat("(", 400_000) + answer,
		"a slow expression":  "/(a+)+$/.test(new Array(1e5).join('a') + 'b'); while (true);",
		"throws":             "throw new Error('no');" + answer,
		"throws when asked":  "function FindProxyForURL() { throw 'no'; }",
		"isn't a script":     "<html>Log in to the hotel's network</html>",
		"nothing":            "",
		"no function":        "var FindProxyForURL = 'DIRECT';",
		"many names":         "function FindProxyForURL() { for (var i = 0; ; i++) dnsResolve('h' + i + '.example.org'); }",
		"a long answer":      "function FindProxyForURL() { return new Array(3e6).join('x'); }",
		"breaks what it has": "dnsResolve = undefined; function FindProxyForURL(u, h) { return dnsResolve(h); }",
		"a looping toString": "function FindProxyForURL() { return { toString: function() { while (true); } }; }",
		"too long":           answer + strings.Repeat(" ", MaxScript),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ask(t, script, "s1.example.org")
			if !errors.Is(err, ErrScript) {
				t.Errorf("%.100q, %v", got, err)
			} else {
				t.Log(err)
			}
		})
	}
}

// What a script could reach if the interpreter had a hole: a confined process has no files, network or programs.
func TestConfinedProcessCanDoNothing(t *testing.T) {
	t.Parallel()
	out := runProbe(t)
	for what, want := range map[string]string{
		"read a file": "operation not permitted", "write a file": "operation not permitted",
		"a socket": "operation not permitted", "a program": "operation not permitted",
		"a signal to another": "operation not permitted", "a fork": "operation not permitted",
		"more processor time": "operation not permitted",
	} {
		if !strings.Contains(out, what+": "+want) {
			t.Errorf("%s: want %q in:\n%s", what, want, out)
		}
	}
}

func TestCancelledEvaluationEndsAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Script{Text: []byte("while (true);"), Resolve: hosts}.Evaluate(ctx, []Question{{}})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestAnswersAsTheReferenceReadsThem(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"":                             "DIRECT",
		"DIRECT":                       "DIRECT",
		"PROXY a:1; PROXY b:2; DIRECT": "a:1;b:2;DIRECT",
		"PROXY\ta:1;":                  "a:1",
		"PROXYa:1":                     "a:1",
		"PROXY http://a:1":             "http://a:1",
		"SOCKS s:1; PROXY a:1":         "a:1",
		"SOCKS5 s:1":                   "",
		"proxy a:1; PROXY b:2":         "b:2",
		"HTTPS a:1":                    "",
		"PROXY ; DIRECT":               "DIRECT",
		"null":                         "",
		"direct":                       "",
	} {
		if got, _ := Proxies(answer); got != want {
			t.Errorf("%q: %q, want %q", answer, got, want)
		}
	}
	if _, skipped := Proxies("SOCKS s:1; PROXY a:1; rubbish"); !cmp.Equal(skipped, []string{"SOCKSs:1", "rubbish"}) {
		t.Errorf("skipped %q", skipped)
	}
}
