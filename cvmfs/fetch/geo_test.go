package fetch

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/testutil"
)

// located serves files, and an order of the servers where it's asked for one.
func located(t testing.TB, order string) *testutil.Faulty {
	return testutil.NewFaulty(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.Contains(r.URL.Path, "/api/v1.0/geo/"):
			io.WriteString(w, text(r.URL.Path))
		case order == "":
			http.NotFound(w, r)
		default:
			io.WriteString(w, order+"\n")
		}
	}))
}

func TestServersAreSortedByGeography(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, order string
		most        int
		want        []int // servers, from 0, that are used one after another as each fails
	}{
		{"as they say", "3,1,2", 0, []int{2, 0, 1}},
		{"at most so many, after sorting", "3,1,2", 2, []int{2, 0}},
		{"nobody knows", "", 0, []int{0, 1, 2}},
		{"nobody knows, at most so many", "", 1, []int{0}},
		{"rubbish", "<html>", 0, []int{0, 1, 2}},
		{"one twice", "1,1,2", 0, []int{0, 1, 2}},
		{"too few", "2,1", 0, []int{0, 1, 2}},
		{"one that there isn't", "4,1,2", 0, []int{0, 1, 2}},
		{"much", strings.Repeat("1,", 10_000), 0, []int{0, 1, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var all []*testutil.Faulty
			var urls []string
			for range 3 {
				s := located(t, c.order)
				all, urls = append(all, s), append(urls, s.URL+"/cvmfs/r")
			}
			cfg := quick(urls...)
			cfg.Geo.Use, cfg.MaxServers = true, c.most
			f := fetcher(t, cfg)
			for i, at := range c.want {
				name := fmt.Sprint("file", i)
				mustGet(t, f, name)
				if all[at].Requests(name) != 1 {
					t.Errorf("file %d did not come from server %d", i, at)
				}
				all[at].Set(testutil.Fault{Status: 500})
			}
			if _, err := get(t.Context(), f, "more"); err == nil {
				t.Error("a server too many was used")
			}
			asked := 0
			for _, s := range all {
				asked += s.Requests("/api/")
			}
			if most := 1; c.order == "3,1,2" && asked != most {
				t.Errorf("asked %d times, want once", asked)
			}
			if asked > 6 { // a bad answer is asked for again past caches
				t.Errorf("asked %d times", asked)
			}
		})
	}
}

func TestGeographyIsAskedForWhoAsks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, template, proxy, want string }{
		{"proxy", "", "p", "127.0.0.1"},
		{"template", "site.example.org", "p", "site.example.org"},
		{"template without a proxy", "site.example.org", "", "site.example.org"},
		{"nobody known", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := located(t, "2,1")
			cfg := quick(s.URL+"/cvmfs/r", strings.Replace(s.URL, "127.0.0.1", "localhost", 1)+"/cvmfs/r")
			cfg.Geo = Geo{Use: true, Template: c.template}
			if c.proxy != "" {
				cfg.Proxies = [][]string{{proxyServer(t).URL}}
			}
			mustGet(t, fetcher(t, cfg), "x")
			path, ok := strings.CutPrefix(s.Log()[0].URL.Path, "/cvmfs/r/api/v1.0/geo/")
			who, hosts, _ := strings.Cut(path, "/")
			if !ok || hosts != "127.0.0.1,localhost" || c.want != "" && who != c.want || len(who) < 5 {
				t.Errorf("asked for %s", s.Log()[0].URL.Path)
			}
		})
	}
}

// Servers of external files are ordinary ones: those of the repository know where they are.
func TestExternalServersAreSortedByTheRepositorys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, order string
		use         bool
		most        int
		want        []int // external servers that are used one after another as each fails
	}{
		{"as they say", "3,1,2", true, 0, []int{2, 0, 1}},
		{"at most so many, after sorting", "3,1,2", true, 2, []int{2, 0}},
		{"not wished", "3,1,2", false, 0, []int{0, 1, 2}},
		{"nobody knows", "", true, 0, []int{0, 1, 2}},
		{"an order of too few", "1,2", true, 0, []int{0, 1, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			own := located(t, c.order)
			var all []*testutil.Faulty
			var urls []string
			for range 3 {
				s := files(t)
				all, urls = append(all, s), append(urls, s.URL+"/x")
			}
			external := quick(urls...)
			external.MaxServers = c.most
			cfg := quick(own.URL + "/cvmfs/r")
			cfg.Geo.Use, cfg.External = c.use, &external
			cfg.Proxies = [][]string{{proxyServer(t).URL}}
			cfg.Timeout, external.TimeoutDirect = time.Minute, time.Minute
			e, err := fetcher(t, cfg).External()
			if err != nil {
				t.Fatal(err)
			}
			for i, at := range c.want {
				name := fmt.Sprint("file", i)
				mustGet(t, e, name)
				if all[at].Requests(name) != 1 {
					t.Errorf("file %d did not come from server %d", i, at)
				}
				all[at].Set(testutil.Fault{Status: 500})
			}
			if _, err := get(t.Context(), e, "more"); err == nil {
				t.Error("a server too many was used")
			}
			asked := own.Requests("/api/v1.0/geo/127.0.0.1/127.0.0.1,127.0.0.1,127.0.0.1") // the proxy asks
			if asked != own.Requests("") || c.use != (asked > 0) || c.order == "3,1,2" && asked > 1 {
				t.Errorf("asked %d times, of %d requests", asked, own.Requests(""))
			}
			for i, s := range all {
				if s.Requests("/api/") > 0 {
					t.Errorf("external server %d was asked for the order", i)
				}
			}
		})
	}
}

// A server that has no such API, or lets nobody to it, is as good for files as before.
func TestRefusedQuestionForTheOrderIsNobodysFault(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusBadRequest, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			near, far := located(t, ""), located(t, "1,2")
			near.Set(testutil.Fault{Path: "/api/", Status: status})
			cfg := quick(near.URL+"/cvmfs/r", far.URL+"/cvmfs/r")
			cfg.Geo.Use = true
			for i := range 40 { // whom to ask is drawn by lot
				mustGet(t, fetcher(t, cfg), fmt.Sprint("file", i))
			}
			if n := near.Requests("file"); n != 40 || near.Requests("/api/") == 0 {
				t.Errorf("%d of 40 files came from the nearer server, which was asked for the order %d times", n,
					near.Requests("/api/"))
			}
		})
	}
}

// A dead server is found out by the question, and not paid for again.
func TestGeographyPaysForADeadServerOnce(t *testing.T) {
	t.Parallel()
	hole, accepted := blackhole(t)
	s := located(t, "1,2")
	cfg := quick(hole, s.URL)
	cfg.Geo.Use, cfg.MaxRetries = true, 1
	f := fetcher(t, cfg)
	start := time.Now()
	for i := range 20 {
		mustGet(t, f, fmt.Sprint(i))
	}
	if n := accepted(); n > 1 {
		t.Errorf("the dead server was tried %d times in %v", n, time.Since(start))
	}
}
