package node

import (
	"reflect"
	"testing"

	"cvmfs-graphdriver/driver/options"
)

// Whatever face it is: no option is taken and has no effect.
func TestEachStorageOptionIsASetting(t *testing.T) {
	o, err := options.ParseHost([]string{
		"cvmfs.repositories=a.example.org", "cvmfs.view=fuse", "cvmfs.cache-limit=1G", "cvmfs.cache-floor=2G",
		"cvmfs.metrics=127.0.0.1:9324", "cvmfs.isolate=yes", "cvmfs.lazy=a.example.org",
		"overlay2.override_kernel_check=true",
	})
	if err != nil {
		t.Fatal(err)
	}
	given := reflect.ValueOf(o)
	for i := range given.NumField() {
		name := given.Type().Field(i).Name
		one := reflect.New(given.Type()).Elem()
		one.Field(i).Set(given.Field(i))
		if given.Field(i).IsZero() {
			t.Errorf("the test gives no %s", name)
		}
		none := reflect.DeepEqual(SettingsOf(one.Interface().(options.Options)), Settings{})
		if forInstallers := name == "Override"; none != forInstallers {
			t.Errorf("%s has an effect: %t", name, !none)
		}
	}
}
