package receive

import (
	"archive/tar"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/testutil"
)

// waits2017 asks for a layer's status as a node of 2017 does once the layer is in the bucket: each second, without a
// token, 2 s for each answer, and whatever is neither "publishing" nor "done" is the end.
func waits2017(address, digest string) error {
	client := http.Client{Timeout: 2 * time.Second}
	for {
		answer, err := client.Get(address + "/status/" + digest)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		switch {
		case err != nil:
			return err
		case answer.StatusCode == http.StatusOK && string(b) == "done":
			return nil
		case answer.StatusCode != http.StatusOK || string(b) != "publishing":
			return fmt.Errorf("%s: %q", answer.Status, b)
		}
		time.Sleep(time.Second)
	}
}

// It asks before any event or poll can have told the service of the layer.
func TestNodesOf2017AreServed(t *testing.T) {
	c, store := atRest(t)
	c.Bucket.Address = "s3://" + s3test.Bucket + "?endpoint=" + store.URL // their layers lie in no folder
	c.Bucket.Poll, c.OpenStatus = time.Hour, true
	address, stop := run(t, c)
	var layers []layer
	for i := range 3 {
		layers = append(layers, newLayer(t, fmt.Sprint("of", i)))
	}
	var nodes sync.WaitGroup
	for _, l := range layers {
		nodes.Go(func() {
			store.Set(l.digest, l.archive, nil)
			if err := waits2017("http://"+address, l.digest); err != nil {
				t.Error(err)
			}
		})
	}
	nodes.Wait()
	if err := waits2017("http://"+address, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("of a layer that isn't in the bucket: %v", err)
	}
	// The same container is committed again.
	store.Set(layers[0].digest, layers[0].archive, nil)
	if err := waits2017("http://"+address, layers[0].digest); err != nil {
		t.Error(err)
	}
	stop()
	hasLayers(t, c, layers...)
}

// A layer that failed may be sent again, and its first status must be no longer that of before.
func TestALayerThatFailedAndIsPutAgainIsPublishing(t *testing.T) {
	s := newSite(t, func(c *Config) { c.OpenStatus = true })
	l := newLayer(t, "file")
	broken := l
	broken.archive = l.archive[:len(l.archive)/2]
	s.puts("", broken)
	s.turn()
	status := func() string {
		_, text, _ := s.request(http.MethodGet, "/status/"+l.digest, "", nil)
		return text
	}
	if text := status(); !strings.HasPrefix(text, "failed: ") {
		t.Errorf("%q", text)
	}
	s.puts("", l)
	if text := status(); text != "publishing" {
		t.Errorf("%q", text)
	}
	s.round(t.Context())
	if text := status(); text != "done" {
		t.Errorf("%q", text)
	}
}

// A node says where its layer is, so that nobody waits for events or the next poll.
func TestALayerIsFoundWhereItsNodeSays(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1", Prefixes: []string{"own"}}, {Name: "*"}} })
	one, two, three := newLayer(t, "one"), newLayer(t, "two"), newLayer(t, "three")
	s.puts("own/", one)
	s.puts("a folder/", two, api.MetaNode, "n2")
	s.puts("a folder/", three, api.MetaNode, "n2")
	s.is(one, api.Publishing, "") // of the node's own folder nothing need be said
	for token, want := range map[string]api.Status{token2: api.Publishing, "": api.Unknown} {
		client, err := api.NewClient(s.web.URL+"/status", api.Options{Token: token, Folder: "in/a folder"})
		if err != nil {
			t.Fatal(err)
		}
		s.c.OpenStatus = token == ""
		l := map[string]layer{token2: two, "": three}[token]
		if a, err := client.Status(t.Context(), l.digest); token != "" && (err != nil || a.Status != want) {
			t.Errorf("with token %q: %+v, %v", token, a, err)
		}
	}
	s.round(t.Context())
	s.has(one, two) // whoever has no token has the service look into no folder
}

// What has no name is one of all that have no entry of their own.
func TestObjectsWithoutANameAreAnybodys(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}, {Name: "*", Approval: true, PerHour: 1}} })
	one, two := newLayer(t, "one"), newLayer(t, "two")
	s.puts("", one)
	s.turn()
	s.is(one, api.Publishing, "approval")
	s.puts("", two)
	s.turn()
	s.is(two, api.Publishing, "* has sent 1 layers within an hour")
	closed := newSite(t, func(c *Config) { c.Nodes = []Node{{Name: "n1"}} })
	closed.puts("", one)
	closed.turn()
	closed.is(one, api.Failed, "may send no layers")
}

// An overlay mount would take it for a whiteout, in place of which nothing is to be seen.
func TestWhiteoutsAsDevicesAreRefused(t *testing.T) {
	s := newSite(t, nil)
	l := zipped(t, testutil.Tar(t, tar.Header{Name: "etc/gone", Typeflag: tar.TypeChar}))
	s.puts("", l)
	s.turn()
	s.is(l, api.Failed, "upgrade the node")
}

// MinIO of 2017 asks whether somebody listens, and doesn't start unless it is answered well.
func TestAStoreThatTriesItsWebhookIsAnswered(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Events = "n2" })
	for _, body := range []string{"", "RELEASE.2017-08-05T00-00-53Z"} {
		for token, want := range map[string]int{token2: http.StatusOK, "": http.StatusUnauthorized} {
			if code, text, _ := s.request(http.MethodPost, "/", token, []byte(body)); code != want {
				t.Errorf("%q: %d %s, want %d", body, code, text, want)
			}
		}
	}
}
