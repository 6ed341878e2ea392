package main

import (
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/s3"
)

// remoteWorkers is how many objects are stored at once where each takes requests to a server.
const remoteWorkers = 16

// openRepository opens a publisher's folder and the storage its settings name.
func openRepository(dir string) (*publish.Repository, error) {
	s, err := publish.ReadSettings(dir)
	if err != nil {
		return nil, err
	}
	storage, err := openStorage(s.Storage)
	if err != nil {
		return nil, err
	}
	o := publish.Options{Storage: storage}
	if storage != nil {
		o.Workers = remoteWorkers
	}
	return publish.Open(dir, o)
}

// openStorage opens the storage at an address; nil, for that of the publisher's folder, at none.
func openStorage(address string) (publish.Storage, error) {
	if address == "" {
		return nil, nil
	}
	storage, err := s3.Open(address, s3.Options{})
	if err != nil {
		return nil, err
	}
	return storage, nil
}
