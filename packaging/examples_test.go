package main

import (
	"encoding/json"
	"os"
	"testing"

	"cvmfs-graphdriver/convert/wish"
	"cvmfs-graphdriver/cvmfs/config"
	"cvmfs-graphdriver/pushback/receive"
)

func TestExamplesAreWhatTheirReadersTake(t *testing.T) {
	c, err := config.Load("examples/cvmfs", "unpacked.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Servers) == 0 || len(c.ProxyGroups) == 0 || len(c.PublicKeys) == 0 {
		t.Errorf("servers %v, proxies %v, keys %v", c.Servers, c.ProxyGroups, c.PublicKeys)
	}
	f, err := os.Open("examples/wishes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if l, err := wish.Read(f); err != nil || len(l.Wishes) != 2 {
		t.Errorf("wishes %v: %v", l, err)
	}
	if c, err := receive.ReadFile("examples/receive.yaml"); err != nil || len(c.Nodes) != 2 {
		t.Errorf("receive.yaml: %+v: %v", c, err)
	}
	text, err := os.ReadFile("examples/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	var daemon struct {
		Experimental bool
		Driver       string `json:"storage-driver"`
	}
	if err := json.Unmarshal(text, &daemon); err != nil || !daemon.Experimental || daemon.Driver == "" {
		t.Errorf("daemon.json: %+v: %v", daemon, err)
	}
}
