package pushback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const of2017 = `{"AccessKey":"key","AccessSecret":"hidden","Host":"127.0.0.1:9000","CvmfsRepo":"layers.example.org",` +
	`"SSL":false,"PublishStatusURL":"http://127.0.0.1:3000/status"}`

func write(t *testing.T, dir, name, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettingsOf2017AreRead(t *testing.T) {
	s, err := Read(write(t, t.TempDir(), FileName, of2017, 0o640))
	if err != nil {
		t.Fatal(err)
	}
	if s.Bucket != "layers" || time.Duration(s.Wait) != 10*time.Minute || s.AccessSecret != "hidden" || s.key("x") != "x" {
		t.Errorf("%+v", s)
	}
	for _, printed := range []string{fmt.Sprint(s), fmt.Sprintf("%+v", *s), fmt.Sprintf("%#v", s)} {
		if strings.Contains(printed, "hidden") {
			t.Errorf("the secret is printed: %s", printed)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), FileName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
}

func TestSettingsOfTodayAreRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "a token\n", 0o600)
	write(t, dir, "keys", "[default]\naws_access_key_id = k\naws_secret_access_key = s\n", 0o600)
	s, err := Read(write(t, dir, FileName, `{"Host":"s3.example.org","SSL":true,"Credentials":"keys","Region":"eu","Bucket":"b",`+
		`"Prefix":"/node7/","PathStyle":true,"CvmfsRepo":"layers.example.org","PublishStatusURL":"https://p.example.org/status",`+
		`"TokenFile":"token","Wait":"30s"}`, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if s.Token != "a token" || s.key("x") != "node7/x" || time.Duration(s.Wait) != 30*time.Second {
		t.Errorf("%+v", s)
	}
	if _, err := s.client(); err != nil {
		t.Error(err)
	}
}

func TestWrongSettingsAreToldByName(t *testing.T) {
	with := func(was, is string) string { return strings.Replace(of2017, was, is, 1) }
	for name, c := range map[string]struct {
		text, want string
		mode       fs.FileMode
	}{
		"no JSON":          {"{", "unexpected EOF", 0o600},
		"more":             {of2017 + "{}", "something follows", 0o600},
		"an unknown key":   {with(`"SSL"`, `"Ssl2"`), "Ssl2", 0o600},
		"for everybody":    {of2017, "chmod 0600", 0o644},
		"no repository":    {with("layers.example.org", ""), "CvmfsRepo", 0o600},
		"another path":     {with("layers.example.org", "../x"), "CvmfsRepo", 0o600},
		"no service":       {with("http://127.0.0.1:3000/status", ""), "PublishStatusURL", 0o600},
		"a store's URL":    {with("127.0.0.1:9000", "http://127.0.0.1:9000"), "Host", 0o600},
		"keys for nothing": {with("127.0.0.1:9000", ""), "no Host", 0o600},
		"no key":           {with(`"key"`, `""`), "AccessKey", 0o600},
		"a missing file":   {with(`"SSL":false`, `"TokenFile":"gone"`), "TokenFile", 0o600},
		"no certificate":   {with(`"SSL":false`, `"CA":"config.json"`), "no certificate", 0o600},
		"no time":          {with(`"SSL":false`, `"Wait":"-1s"`), "want more", 0o600},
		"Host is a secret": {with("127.0.0.1:9000", "key:hidden@127.0.0.1"), "Host", 0o600},
		"a secret address": {with("http://127", "http://a:hidden@127"), "PublishStatusURL", 0o600},
		"a secret number":  {with(`"hidden"`, `7`), "AccessSecret", 0o600},
		"a token of lines": {with(`"SSL":false`, `"Token":"hidden\nhidden"`), "one line", 0o600},
		"a long time":      {with(`"SSL":false`, `"Wait":"9000h"`), "at most", 0o600},
		"open to changes":  {`{"CvmfsRepo":"l.example.org","PublishStatusURL":"http://127.0.0.1:1/status"}`, "chmod 0644", 0o646},
		"a device":         {with(`"SSL":false`, `"TokenFile":"/dev/zero"`), "regular", 0o600},
		"a token in clear": {with("http://127.0.0.1:3000/status", `http://h/status","Token":"t`), "without TLS", 0o600},
	} {
		_, err := Read(write(t, t.TempDir(), FileName, c.text, c.mode))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") ||
			errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestAllThatIsWrongWithSettingsIsToldAtOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "secret", 0o644)
	text := `{"CvmfsRepo":"x/y","Host":"h","CA":"gone","TokenFile":"token","PublishStatusURL":"ftp://h"}`
	_, err := Read(write(t, dir, FileName, text, 0o646))
	for _, want := range []string{
		"CvmfsRepo", "CA: stat", "TokenFile: it holds secrets", "PublishStatusURL", "chmod 0644", "AccessKey",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Whoever changes it answers for the service, and gets the token.
func TestAnAuthorityIsNotEverybodys(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(write(t, dir, "ca.pem", "", 0o600), 0o666); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(of2017, `"SSL":false`, `"CA":"ca.pem"`, 1)
	_, err := Read(write(t, dir, FileName, text, 0o600))
	if err == nil || !strings.Contains(err.Error(), "CA: everybody can change it") {
		t.Error(err)
	}
}

// Whoever opens a pipe to read waits for somebody to write, and a commit would hang.
func TestAPipeIsNoSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Error(err)
	}
}

// What reads the file quotes lines that it doesn't understand.
func TestWrongCredentialsAreNotQuoted(t *testing.T) {
	for name, text := range map[string]string{
		"no key":     "[default]\naws_access_key_id = k\naws_secret_access_key hidden\n",
		"no secret":  "[default]\naws_access_key_id = k\n",
		"no profile": "[other]\naws_access_key_id = k\naws_secret_access_key = hidden\n",
		"not theirs": "hidden",
	} {
		s := settingsOf("127.0.0.1:1", "http://127.0.0.1:1/status")
		s.AccessKey, s.AccessSecret, s.Credentials = "", "", write(t, t.TempDir(), "keys", text, 0o600)
		if _, err := s.client(); err == nil || !strings.Contains(err.Error(), "no access key and secret") ||
			strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnEmptyTokenIsNone(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "\n", 0o600)
	text := strings.Replace(of2017, `"SSL":false`, `"TokenFile":"token"`, 1)
	if _, err := Read(write(t, dir, FileName, text, 0o600)); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Error(err)
	}
}

func TestFilesOutsideOfTheFolderAreFound(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	inside, elsewhere := write(t, dir, "token", "a token", 0o600), write(t, other, "token", "a token", 0o600)
	for name, to := range map[string]string{"out": elsewhere, "in": "token"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]int{
		"token": 0, "in": 0, "./token": 0, inside: 1, elsewhere: 1, "out": 1, "../" + filepath.Base(other) + "/token": 1,
	} {
		s, err := Read(write(t, dir, FileName, strings.Replace(of2017, `"SSL":false`, `"TokenFile":"`+file+`"`, 1), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Outside(dir); len(got) != want {
			t.Errorf("%s: %q", file, got)
		}
	}
}
