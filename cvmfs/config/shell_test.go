package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// load loads a folder and returns the configuration and its findings, one a line.
func load(t testing.TB, dir string) (*Config, string) {
	t.Helper()
	c, err := Load(dir, fqrn)
	if err != nil {
		t.Fatal(err)
	}
	return c, text(c.Findings)
}

func text(findings []Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(f.String() + "\n")
	}
	return b.String()
}

// What sites' files use of the shell, with the values /bin/sh gives.
func TestTheShellIsUnderstood(t *testing.T) {
	dir := minimal(t, "")
	for name, text := range map[string]string{
		"release": "ID=debian\nVERSION=12\n# (comment)\n", "sub.conf": "V=$V-sub\nreturn\nV=after\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "config.d", fqrn+".conf")
	for script, want := range map[string]string{
		"V=$((1 + 2 * 3))":                                            "7",
		"A=4; V=$((A*1000)):$(($A % 3))":                              "4000:1",
		"V=$(( $$ > 1 ))":                                             "1",
		"V=$(( RANDOM < 32768 ))":                                     "1",
		"V=x$RANDOM; [ $V = x ] && V=none; V=${V%%[0-9]*}":            "x",
		"V=1; unset V; V=${V-gone}":                                   "gone",
		"case abc in b*) V=1;; a*|x) V=2;; *) V=3;; esac":             "2",
		`case "a*" in a\*) V=1;; *) V=2;; esac`:                       "1",
		"case ab in 'a*') V=1;; *) V=2;; esac":                        "2",
		"V=`echo a b`":                                                "a b",
		"V=$(echo a; echo b)":                                         "a b",
		`V="$(printf '%s,' x y)"`:                                     "x,y,",
		"V=`echo a b|tr ' ' ,`":                                       "a,b",
		"V=$(echo b a b | tr ' ' '\\n' | sort -u | tr '\\n' ' ')":     "a b",
		"V=$(echo a.b.c | cut -d. -f2-)":                              "b.c",
		"V=$(echo abc | cut -c1,3)":                                   "ac",
		"V=$(grep ^ID= ../release | cut -d= -f2)":                     "debian",
		"V=$(cat ../release | head -1)":                               "ID=debian",
		"V=$(cat < ../release | grep -c =)":                           "2",
		"V=0; grep -q debian ../release && V=1":                       "1",
		"V=0; grep -q fedora ../release || V=1":                       "1",
		"V=0; grep -qi DEBIAN /etc/cvmfs/release && V=1":              "1",
		"V=0; grep -q '^ID=\\(debian\\|ubuntu\\)$' ../release && V=1": "1",
		"V=0; grep -Eq '^VERSION=(11|12)$' ../release && V=1":         "1",
		"V=0; grep -q '(comment)' ../release && V=1":                  "1",
		"V=0; grep -Fq '.' ../release || V=1":                         "1",
		"V=0; grep -q x ../absent 2>/dev/null || V=1":                 "1",
		"V=0; [ -f ../absent ] && grep -q x ../absent && V=1":         "0",
		"V=0; [ 2 -lt 10 ] && [ 10 -ge 10 ] && [ 1 -ne 2 ] && V=1":    "1",
		"V=0; [ \"$N\" -lt 9 ] || V=1":                                "1",
		`V=0; [ \( a = b -o a = a \) -a ! b = c ] && V=1`:             "1",
		"V=0; [ -x /etc/cvmfs/config.d ] && V=1":                      "1",
		"for i in a b c; do V=$V$i; done":                             "abc",
		"for i in a b c; do [ $i = b ] && continue; V=$V$i; done":     "ac",
		"for i in a b c; do [ $i = b ] && break; V=$V$i; done":        "a",
		"i=0; while [ $i -lt 5 ]; do i=$((i+1)); V=$V$i; done":        "12345",
		"i=0; until [ $i -ge 2 ]; do i=$((i+1)); done; V=$i":          "2",
		"V=1; (V=2)":                                         "1",
		"V=$( (echo a; echo b) | tr -d b)":                   "a",
		"V=$((echo a; echo b)|tr -d a)":                      "b",
		"eval V=x":                                           "x",
		"A='V=x'; eval \"$A\"":                               "x",
		"V=a; . ../sub.conf":                                 "a-sub",
		"V=a; . /etc/cvmfs/sub.conf":                         "a-sub",
		"cd ..; V=a; . ./sub.conf":                           "a-sub",
		"V=http://h/a/b; V=${V##*/}":                         "b",
		"V=a.b.c; V=${V%.*}:${V%%.*}:${V#*.}":                "a.b:a:b.c",
		"V=abc; V=${#V}":                                     "3",
		"V=$(basename /a/b.conf .conf)$(dirname /a/b)":       "b/a",
		"V=$(echo $CVMFS_FQRN | tr '[:lower:]' '[:upper:]')": "ATLAS.EXAMPLE.ORG",
		"V=0; true && V=1; false && V=2; : && :":             "1",
		"V=1; echo gone >/dev/null 2>&1; echo gone >&2":      "1",
		"set -a; V=1; set +a":                                "1",
		"V=$(ls /cvmfs)x":                                    "x",
		"V=$(ls ../config.d)":                                fqrn + ".conf",
		"V=\"a\\\nb\"":                                       "ab",
		"V=a; false || return; V=b":                          "a",
		"V=a; exit; V=b":                                     "a",
		"A=1; V=$(A=2; echo $A)$A":                           "21",
		"V=${A:-$(echo d)}":                                  "d",
		"A=; V=${A:-`echo d`}":                               "d",
		"false; V=$?":                                        "1",
		"V=$(false) || V=failed":                             "failed",
		"V=$(false)x; W=$?; V=$W":                            "1",
		"V=$?":                                               "0",
		"\tV=1 \r\n":                                         "1",
	} {
		if err := os.WriteFile(file, []byte(complete+script+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := Load(dir, fqrn)
		if err != nil {
			t.Errorf("%s: %v", script, err)
			continue
		}
		if c.Params["V"] != want || len(c.Findings) > 0 {
			t.Errorf("%s: got %q, want %q; %s", script, c.Params["V"], want, text(c.Findings))
		}
	}
}

// A line that can't be understood is told by place and name, has no effect, and hinders nothing else.
func TestALineThatFailsIsToldAndTheRestIsRead(t *testing.T) {
	for script, want := range map[string]string{
		"V=$(date)":                       `the command "date" is not run`,
		"V=`hostname -d`":                 `the command "hostname" is not run`,
		`V="${A:-$(date)}"`:               `the command "date" is not run`,
		"V=${A/x/y}":                      "search and replace",
		"V=~/x":                           "a home folder (~) is not supported",
		"V=/x:~/y":                        "a home folder (~) is not supported",
		"V=${A:?is needed}":               "A is not set: is needed",
		"V=(a b)":                         "arrays",
		"V+=x":                            `the command "V+=x" is not run`,
		"V=x rm -rf /":                    `the command "rm" is not run: write quotes`,
		"rm -rf /":                        `the command "rm" is not run`,
		"[[ a = a ]]":                     `the command "[[" is not run`,
		"V = 1":                           "there must be no blanks around = after \"V\"",
		"V=a; http://p2:3128":             "write quotes around a value with ; or |",
		"export $A=x":                     "a name that isn't written out",
		"export A$B":                      "a name that isn't written out",
		"V=x > /tmp/file":                 "this redirection is not supported",
		"cat <<EOF\nV=1\nEOF":             "this redirection is not supported",
		"V=x &":                           "a command in the background is not supported",
		"f() { V=x; }":                    "a function is not supported",
		"if [ a; then V=x; fi":            `"[" without "]"`,
		"[ a b c d ] && V=x":              "a test that is not understood",
		"V='x":                            "without closing quote",
		"V=a)":                            "write it as /bin/sh would understand it",
		". ./absent.conf":                 "read /etc/cvmfs/default.d/absent.conf: no such file",
		". ../config.d":                   "not a regular file",
		". ./x y":                         "the file to be read is not known",
		"V=" + strings.Repeat("x", 20000): "more than 16384 bytes",
		"V=$((1/0))":                      "division by zero",
		"V=$(echo x | sed s/x/y/)":        `the command "sed" is not run`,
		"V=$(printf %1000000000d 1)":      "is not supported",
		"V=$(grep -P x ../y)":             "-P is not supported",
		"set -e":                          "set -e is not supported",
		"cd /nowhere":                     "the folder to go to is not there",
		"trap x EXIT":                     `the command "trap" is not run`,
		"V=$(echo 'a' | tr -x a b)":       "-x is not supported",
		"select V in a; do :; done":       "select",
	} {
		dir := folder(t, map[string]string{
			"default.local":              complete,
			"default.d/x.conf":           "V=\n" + script + "\n",
			"config.d/" + fqrn + ".conf": "AFTER=yes\nCVMFS_KEYS_DIR=/etc/cvmfs/keys\nCVMFS_BLACKLIST=/etc/cvmfs/blacklist\nCVMFS_STRICT_MOUNT=no\nCVMFS_ROOT_HASH= CVMFS_REPOSITORY_TAG= CVMFS_REPOSITORY_DATE= CVMFS_CONFIG_REPOSITORY= CVMFS_CONFIG_REPO_REQUIRED=\n",
		})
		c, found := load(t, dir)
		if !strings.Contains(found, "/etc/cvmfs/default.d/x.conf:2: ") || !strings.Contains(found, want) ||
			strings.Contains(found, dir) {
			t.Errorf("%.60s: found %s, want %q", script, found, want)
		}
		if c.Params["AFTER"] != "yes" || c.Params["V"] == "x" {
			t.Errorf("%.60s: parameters %v", script, c.Params)
		}
	}
}

// Nobody gets more than a host means to give because a line of its files isn't understood.
func TestNothingFailsOpen(t *testing.T) {
	for name, script := range map[string]string{
		"keys by a command":                "CVMFS_PUBLIC_KEY=$(find-keys)",
		"keys' folder by a command":        "CVMFS_KEYS_DIR=`hostname`/keys",
		"a value with blanks":              "CVMFS_KEYS_DIR=/etc/cvmfs/a b",
		"blanks around =":                  "CVMFS_STRICT_MOUNT = yes",
		"a colon":                          "CVMFS_STRICT_MOUNT: yes",
		"a value with |":                   "CVMFS_PUBLIC_KEY=/a|/b",
		"an array":                         "CVMFS_BLACKLIST=(a b)",
		"appended":                         "CVMFS_PUBLIC_KEY+=:/x",
		"of another variable":              "DIR=$(date)\nCVMFS_KEYS_DIR=/etc/cvmfs/$DIR",
		"of another's other":               "A=$(date)\nB=${A%x}\nexport CVMFS_KEYS_DIR=$B",
		"of arithmetic":                    "A=$(date)\nCVMFS_KEYS_DIR=/k$((A+1))",
		"behind a failed condition":        "if hostname -d | grep -q example; then\nCVMFS_STRICT_MOUNT=yes\nfi",
		"in the other branch":              "if domainname; then :; else CVMFS_KEYS_DIR=/etc/cvmfs/keys; fi",
		"behind a failed &&":               "onlyhere && CVMFS_STRICT_MOUNT=yes",
		"behind a failed ||":               "onlyhere || CVMFS_STRICT_MOUNT=no",
		"behind a condition in doubt":      "SITE=$(site)\n[ \"$SITE\" = x ] && CVMFS_BLACKLIST=/x",
		"in a case in doubt":               "case $(uname -n) in a) CVMFS_STRICT_MOUNT=yes;; esac",
		"in a loop in doubt":               "for k in $(find /keys); do CVMFS_PUBLIC_KEY=$CVMFS_PUBLIC_KEY:$k; done",
		"after a failed return":            "onlyhere || return\nCVMFS_STRICT_MOUNT=yes",
		"after a return in doubt":          "if [ -z \"$(site)\" ]; then return; fi\nCVMFS_STRICT_MOUNT=yes",
		"by eval":                          "eval \"$(make-settings)\"",
		"by a file that isn't there":       ". /srv/absent/keys.conf",
		"by a file with a failed name":     ". ./$(hostname).conf",
		"by a function":                    "f() { CVMFS_KEYS_DIR=/x; }\nCVMFS_KEYS_DIR=/y\nf",
		"by read":                          "read CVMFS_KEYS_DIR",
		"by read, at one remove":           "read A\nCVMFS_KEYS_DIR=$A",
		"in an open quote":                 "A='x\nCVMFS_STRICT_MOUNT=yes",
		"in an open if":                    "if [ a = b ]; then\nCVMFS_STRICT_MOUNT=no",
		"on a line with a fault":           "CVMFS_STRICT_MOUNT=yes )",
		"behind a fi too many":             "fi\nCVMFS_KEYS_DIR=/x",
		"by the status of a failure":       "onlyhere\nif [ $? -eq 0 ]; then CVMFS_STRICT_MOUNT=yes; fi",
		"by the status of a failure, kept": "onlyhere; A=$?\n[ $A = 0 ] && CVMFS_STRICT_MOUNT=yes",
		"after what ends the shell":        ": ${SITE:?}\nCVMFS_STRICT_MOUNT=no",
		"a name that is put together":      "P=CVMFS_\nexport ${P}STRICT_MOUNT=yes",
		"a quoted one":                     "P=CVMFS_\nexport \"${P}STRICT_MOUNT=yes\"",
		"one of another shell's":           "P=CVMFS_\ndeclare ${P}STRICT_MOUNT=yes",
		"unset in doubt":                   "unset $(names)",
		"unset behind a failure":           "onlyhere && unset CVMFS_BLACKLIST",
		"the list under STRICT_MOUNT":      "CVMFS_STRICT_MOUNT=yes\nCVMFS_REPOSITORIES=" + fqrn + ", b.example.org",
		"a list by a command":              "CVMFS_STRICT_MOUNT=yes\nCVMFS_REPOSITORIES=" + fqrn + ",$(more)",
		"set -e":                           "set -e\nfalse\nCVMFS_STRICT_MOUNT=yes",
		"a fixed revision":                 "CVMFS_ROOT_HASH=$(newest)",
		"in the background":                "CVMFS_STRICT_MOUNT=yes &",
		"a default by a command":           "CVMFS_KEYS_DIR=${KEYS:-$(find-keys)}",
		"the configuration repository":     "CVMFS_CONFIG_REPOSITORY=$(which-one)",
		"after a folder that isn't one":    "cd /srv/nowhere\n. ./keys.conf",
	} {
		for _, file := range []string{"default.local", "config.d/" + fqrn + ".conf"} {
			dir := folder(t, map[string]string{
				"default.conf": "CVMFS_SERVER_URL=http://s/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\n", "keys/k.pub": "",
				file: script + "\n",
			})
			_, err := Load(dir, fqrn)
			if err == nil || !strings.Contains(err.Error(), "is not certain") ||
				!strings.Contains(err.Error(), "/etc/cvmfs/"+file+":") {
				t.Errorf("%s in %s: got %v", name, file, err)
			}
		}
	}
	// What fails for one repository concerns no other.
	dir := folder(t, map[string]string{
		"default.conf": "CVMFS_SERVER_URL=http://s/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\n", "keys/k.pub": "",
		"config.d/" + fqrn + ".conf": "CVMFS_PUBLIC_KEY=$(find-keys)\n",
	})
	if _, err := Load(dir, "other.example.org"); err != nil {
		t.Errorf("another repository: %v", err)
	}
	// A certain value ends the doubt, and a failed line that sets nothing of the kind begins none.
	for _, script := range []string{
		"CVMFS_KEYS_DIR=$(x)\nCVMFS_KEYS_DIR=/etc/cvmfs/keys", "logger started", "echo \"$CVMFS_KEYS_DIR\" | mail root",
		"# CVMFS_KEYS_DIR=(\nCVMFS_QUOTA_LIMIT=$(df)\n", "A=$(x)\n[ -n \"$A\" ] && CVMFS_TIMEOUT=3",
		"if x; then\n# CVMFS_STRICT_MOUNT=yes\nCVMFS_TIMEOUT=3\nfi", "V=)\nCVMFS_KEYS_DIR=/etc/cvmfs/keys",
		". ./absent.conf",
	} {
		dir := folder(t, map[string]string{
			"default.conf": "CVMFS_SERVER_URL=http://s/@fqrn@\nCVMFS_HTTP_PROXY=DIRECT\n", "keys/k.pub": "",
			"default.local": script + "\n",
		})
		if c, err := Load(dir, fqrn); err != nil || len(c.Findings) == 0 {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestNothingIsExecutedNorWritten(t *testing.T) {
	witness := filepath.Join(t.TempDir(), "witness")
	t.Setenv("PATH", "/usr/bin:/bin")
	for _, script := range []string{
		"touch " + witness, "V=$(touch " + witness + ")", "V=`touch " + witness + "`", "V=x > " + witness,
		"[ a ] && touch " + witness, "/usr/bin/touch " + witness, "echo x >" + witness, "echo x | tee " + witness,
		"eval touch " + witness, "exec touch " + witness, "command touch " + witness, "cat </etc/passwd >>" + witness,
		": >| " + witness, "echo x 1<>" + witness, "trap 'touch " + witness + "' EXIT", "touch " + witness + " &",
		"f() { touch " + witness + "; }; f", "alias x='touch " + witness + "'\nx", "sort -o " + witness + " ../x",
		"echo x &>" + witness, "V=$(<" + witness + ")", "builtin eval touch " + witness,
	} {
		if _, err := Load(minimal(t, script+"\n"), fqrn); err != nil && !strings.Contains(err.Error(), "not certain") {
			t.Errorf("%s: %v", script, err)
		}
		if _, err := os.Stat(witness); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: something was executed: %v", script, err)
		}
	}
}

// Whatever a file says, reading it ends soon and takes little memory.
func TestReadingIsBounded(t *testing.T) {
	dir := minimal(t, "")
	for _, name := range []string{"zero.conf", "self.conf"} {
		if err := os.Symlink(map[string]string{"zero.conf": "/dev/zero", "self.conf": "config.d/" + fqrn + ".conf"}[name],
			filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "config.d", fqrn+".conf"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "huge"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "long"), bytes.Repeat([]byte{'a'}, 60_000), 0o644); err != nil {
		t.Fatal(err)
	}
	var many strings.Builder
	for i := range 5000 {
		many.WriteString("A" + strings.Repeat("b", i%7) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) +
			string(rune('a'+i/676)) + "=\n")
	}
	const limited, failed = "too much for a configuration file", ""
	for name, c := range map[string]struct{ script, want string }{
		"an endless loop":          {"while :; do :; done", limited},
		"one without commands":     {"while [ a ]; do A=x; done", limited},
		"nested loops":             {"for a in 1 2 3 4 5 6 7 8 9; do " + strings.Repeat("for b in 1 2 3 4 5 6 7 8 9; do ", 8) + ":" + strings.Repeat("; done", 9), limited},
		"doubling":                 {"A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("A=$A$A\n", 40), failed},
		"doubling for ever":        {"A=x; while :; do A=$A$A; done", limited},
		"doubling defaults":        {"A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("B=${C:-$A$A}\nA=$B\n", 40), failed},
		"many of a long one":       {"A=" + strings.Repeat("x", 16000) + "\nV=" + strings.Repeat("$A", 9000), failed},
		"long arguments":           {"A=" + strings.Repeat("x", 16000) + "\nwhile :; do echo $A$A; done", limited},
		"output without end":       {"V=$(while :; do echo x; done)", limited},
		"many parameters":          {many.String(), limited},
		"endless eval":             {"A='eval \"$A\"'; eval \"$A\"", limited},
		"endless substitution":     {"A='V=$(eval \"$A\")'; eval \"$A\"", limited},
		"a file that reads itself": {". ./" + fqrn + ".conf", limited},
		"and through a link":       {". ../self.conf", limited},
		"/dev/zero":                {". ../zero.conf", failed},
		"/dev/zero by name":        {"cat /dev/zero; grep x /dev/zero; . /dev/zero", failed},
		"a pipe":                   {"cat ../fifo; grep -q x ../fifo; . ../fifo; cat <../fifo", failed},
		"a huge file":              {"cat ../huge; . ../huge", failed},
		"the kernel's log":         {"cat /proc/kmsg /dev/kmsg /dev/tty", failed},
		"deep parentheses":         {strings.Repeat("(", 30000), limited},
		"deep arithmetic":          {"V=$((" + strings.Repeat("(", 30000), limited},
		"deep substitutions":       {"V=" + strings.Repeat("$(", 30000), limited},
		"deep blocks":              {strings.Repeat("{ ", 900) + ":" + strings.Repeat("; }", 900), limited},
		"deep ifs":                 {strings.Repeat("if :; then ", 4000) + ":" + strings.Repeat("; fi", 4000), limited},
		"deep defaults":            {"V=" + strings.Repeat("${A:-", 1900) + strings.Repeat("}", 1900), limited},
		"deep tests":               {"[ " + strings.Repeat("! ", 20000) + "a ]", limited},
		"a pattern that explodes":  {"A=" + strings.Repeat("a", 16000) + "; while :; do V=${A%" + strings.Repeat("*a", 200) + "b}; done", limited},
		"a grep that explodes":     {"echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | grep -E '(a*)*(a*)*(a*)*b'; echo x | grep -E '(((x{1000}){1000}){1000})'", failed},
		"a long grep":              {"P='" + strings.Repeat("a{1000}", 400) + "'; while :; do echo x | grep -E \"$P\"; done", limited},
		"a grep of many states":    {"P='" + strings.Repeat("a{1000}", 140) + "'; while :; do echo x | grep -E \"$P\"; done", limited},
		"a cut of many fields":     {"L=" + strings.Repeat("9999,", 3000) + "1; while :; do cut -c $L ../long; done", limited},
		"a tr of many characters":  {"L='" + strings.Repeat(" -`", 5000) + "'; while :; do tr -d \"$L\" <../long; done", limited},
		"numbers beyond all":       {"V=$((9999999999999999999999 * 99999999999)); V=$((1 << 999)); V=$((-9223372036854775808 / -1))", failed},
		"names that turn around":   {"A=B B=A V=$((A))", failed},
		"many faults":              {strings.Repeat("V=)\n", 200), limited},
		"many doubtful texts":      {"while x; do :; done; for i in $(x) 1 2 3; do " + strings.Repeat("CVMFS_A=1;", 5000) + " done", limited},
	} {
		file := filepath.Join(dir, "config.d", fqrn+".conf")
		if err := os.WriteFile(file, []byte(complete+c.script+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err := Load(dir, fqrn)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: %v", name, took)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), "/etc/cvmfs/")) {
			t.Errorf("%s: got %v", name, err)
		}
		if c.want == "" && err != nil && !strings.Contains(err.Error(), "is not certain") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A process reads a configuration the same way each time, though parts are drawn by lot.
func TestChanceIsDrawnOnce(t *testing.T) {
	dir := minimal(t, "V=$RANDOM-$RANDOM-$$\n")
	first, _ := load(t, dir)
	second, _ := load(t, dir)
	if v := first.Params["V"]; v != second.Params["V"] || len(v) < 5 {
		t.Errorf("got %q and %q", v, second.Params["V"])
	}
}

func TestNumbersAreTheDigitsThatAValueBeginsWith(t *testing.T) {
	c, found := load(t, minimal(t, `CVMFS_QUOTA_LIMIT=20G
CVMFS_TIMEOUT=0
CVMFS_TIMEOUT_DIRECT=5s
CVMFS_MAX_RETRIES=-1
CVMFS_LOW_SPEED_LIMIT=1e3
CVMFS_BACKOFF_MAX=99999999999999999999
CVMFS_BACKOFF_INIT=4000.5
CVMFS_MAX_TTL=yes
`))
	if c.Timeout != 0 || c.TimeoutDirect != 5*time.Second || c.MaxRetries != 0 ||
		c.LowSpeedLimit != 1 || c.BackoffMax != maxSeconds*time.Second || c.BackoffInit != 4000*time.Second ||
		c.MaxTTL != 0 {
		t.Errorf("got %+v", c)
	}
	for _, want := range []string{
		`.conf:4: CVMFS_QUOTA_LIMIT: "20G" is taken as 20: it is a number of MiB`, ".conf:6: CVMFS_TIMEOUT_DIRECT: ",
		`.conf:7: CVMFS_MAX_RETRIES: "-1" is taken as 0`, ".conf:8: CVMFS_LOW_SPEED_LIMIT: ",
		".conf:9: CVMFS_BACKOFF_MAX: ", ".conf:10: CVMFS_BACKOFF_INIT: ", ".conf:11: CVMFS_MAX_TTL: ",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("%s\nlacks %q", found, want)
		}
	}
}

func TestBadSettingsAreAllNamedWithTheirPlace(t *testing.T) {
	_, err := Load(minimal(t, `CVMFS_SERVER_URL="http://ok/x;ftp://user:secret@b/y"
CVMFS_HTTP_PROXY="DIRECT|http://user:secret@p:port"
CVMFS_FALLBACK_PROXY="://user:secret@p"
CVMFS_UID_MAP=/etc/cvmfs/absent
`), fqrn)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		".conf:4: CVMFS_SERVER_URL: server 2 ", ".conf:5: CVMFS_HTTP_PROXY: proxy 2 of group 1: ",
		".conf:7: CVMFS_UID_MAP: read /etc/cvmfs/absent: no such file",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("a password is shown: %v", err)
	}
}
