package client

import (
	"net/http"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/test/testutil"
)

// A server whose manifest is well and whose data isn't is found out by the certificate, inside the manifest's fetch,
// and not paid for again: not by the whitelist, nor by a catalog, nor by files.
func TestManifestsServerWithoutDataIsPaidForOnce(t *testing.T) {
	const fqrn, timeout = "images.example.org", time.Second
	for _, c := range []struct {
		name  string
		fault testutil.Fault
		asked int // for the manifest, the whitelist, and what else
	}{
		{"stalls", testutil.Fault{Silent: true}, 3},
		{"lacks it", testutil.Fault{Status: 404}, 3},
		{"rubbish", testutil.Fault{Flip: true}, 3},
		{"truncates", testutil.Fault{Cut: 9}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			files := http.FileServerFS(testutil.Reference(t, fqrn))
			bad, good := testutil.NewFaulty(t, files), testutil.NewFaulty(t, files)
			c.fault.Path = "data/"
			bad.Set(c.fault)
			f, err := fetch.New(fetch.Config{
				Servers: []string{bad.URL, good.URL}, TimeoutDirect: timeout, MaxRetries: 1, HostResetAfter: time.Hour,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.Close)
			cfg := reference(t, fqrn)
			cfg.Fetcher = f
			r, err := newRepository(cfg)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := walkAll(t.Context(), newest(t, r)); err != nil {
				t.Fatal(err)
			}
			t.Logf("%.1f s", time.Since(start).Seconds())
			// The last attempt may meet a connection that is just being closed, and then the server doesn't see it.
			if n := bad.Requests(""); n != c.asked && n != max(c.asked-1, 3) {
				t.Errorf("the bad server was asked %d times, want %d", n, c.asked)
			}
			if st := f.Stats(); st.Failures != int64(c.asked-2) {
				t.Errorf("%d attempts failed, want %d", st.Failures, c.asked-2)
			}
		})
	}
}
