package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/images"
)

// sampleImage is a line of the table: what it is made of, what is run in it, and how one sees that it is ready.
type sampleImage struct {
	name string
	what string // what a start does, for people
	make maker

	command []string // nil for the image's own
	ready   string   // text that the command writes when it is ready
}

// maker makes an image, or takes it from the cache folder. What isn't kept is made in a work folder.
type maker func(ctx context.Context, cache, work string, progress io.Writer) (*images.Image, error)

// table is the images there are, after the kinds of HelloBench. Each line is made, run and measured by the same code.
var table = []sampleImage{
	{
		name: "base", what: "`echo`", make: packages("base"),
		command: []string{"echo", "ready"}, ready: "ready",
	},
	{
		name: "python", what: "import NumPy, SciPy, pandas",
		make: func(ctx context.Context, cache, _ string, progress io.Writer) (*images.Image, error) {
			return images.FetchDebian(ctx, cache, progress)
		},
		ready: images.DebianSays,
	},
	{
		name: "gcc", what: "compile and run hello", make: packages("gcc", "gcc", "libc6-dev"),
		command: shell(`echo 'int puts(const char *); int main(void) { puts("ready"); return 0; }' >/tmp/hello.c
gcc -O2 -o /tmp/hello /tmp/hello.c; /tmp/hello`), ready: "ready",
	},
	{
		name: "node", what: "serve hello", make: packages("node", "nodejs"),
		command: []string{"node", "-e", `const http = require("http")
const s = http.createServer((_, answer) => answer.end("ready\n")).listen(8080, () =>
	http.get("http://127.0.0.1:8080/", answer => {
		answer.pipe(process.stdout)
		answer.on("end", () => s.close())
	}))`},
		ready: "ready",
	},
	{
		name: "openjdk", what: "compile and run hello", make: packages("openjdk", "openjdk-17-jdk-headless"),
		command: shell(`cat >/tmp/Hello.java <<'HELLO'
class Hello { public static void main(String[] a) { System.out.println("ready"); } }
HELLO
/usr/lib/jvm/java-17-openjdk-*/bin/java /tmp/Hello.java`), ready: "ready",
	},
	{
		name: "postgres", what: "`initdb`, `select 1`", make: packages("postgres", "postgresql-15"),
		command: append([]string{"setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"}, // not as root
			shell(`PATH=/usr/lib/postgresql/15/bin:$PATH
initdb --auth=trust --no-sync /tmp/data >/tmp/log
pg_ctl --pgdata=/tmp/data --options="-k /tmp -h ''" --log=/tmp/log --wait start >/tmp/started
psql --host=/tmp --no-psqlrc --tuples-only --command="select 'rea' || 'dy'" postgres
pg_ctl --pgdata=/tmp/data --mode=immediate stop >/tmp/stopped`)...), ready: "ready",
	},
	{
		name: "nginx", what: "serve a page", make: packages("nginx", "nginx-light"),
		command: shell(`cat >/tmp/nginx.conf <<'CONF'
error_log /dev/stderr;
pid /tmp/nginx.pid;
events {}
http {
	access_log off;
	include /etc/nginx/mime.types;
	server { listen 127.0.0.1:8080; root /usr/share/nginx/html; }
}
CONF
nginx -c /tmp/nginx.conf -e /dev/stderr
bash -ec 'exec 3<>/dev/tcp/127.0.0.1/8080; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3'
kill "$(cat /tmp/nginx.pid)"`), ready: "Welcome to nginx!",
	},
	{
		name: "octave", what: "eigenvalues of a matrix",
		make:    packages("octave", "libopenblas0-pthread", "octave"),
		command: []string{"octave-cli", "--no-history", "--eval", "printf('%.0f\\n', max(abs(eig(magic(100)))))"},
		ready:   "500050",
	},
	{
		name: "texlive", what: "typeset a page", make: packages("texlive", "texlive-latex-base", "texlive-fonts-extra"),
		command: shell(`cd /tmp
d=/usr/share/texlive/texmf-dist
export TEXMFCNF=$d/web2c TEXINPUTS=.:$d/tex/plain//:$d/tex/generic// MKTEXPK=0
export TFMFONTS=$d/fonts/tfm// T1FONTS=$d/fonts/type1// TEXFONTMAPS=$d/fonts/map/dvips//
cat >page.tex <<'PAGE'
\catcode` + "`" + `\{=1 \catcode` + "`" + `\}=2 \catcode` + "`" + `\#=6
\input plain
\pdfoutput=1 \pdfmapfile{=cm.map}
\font\title=cmbx10 scaled \magstep2
\centerline{\title A page} \bigskip
Mass and energy: $E = m c^2$.
\bye
PAGE
pdftex -ini -etex -interaction=batchmode page.tex >said
head -c 4 page.pdf
echo ' is ready'`), ready: "%PDF is ready",
	},
	{
		name: "files", what: "read 100 of 100,000 small files", make: generated(100_000),
		command: shell("for n in 0 1 2 3 4 5 6 7 8 9; do cat /files/$n/$n/*77; done >/dev/null; echo ready"),
		ready:   "ready",
	},
	{
		name: quickImage, what: "read 200 of 2,000 small files", make: generated(2_000),
		command: shell("for n in 0 1 2 3 4 5 6 7 8 9; do cat /files/$n/$n/*; done >/dev/null; echo ready"),
		ready:   "ready",
	},
}

// shell is a command that ends at the first part that fails.
func shell(script string) []string { return []string{"sh", "-ec", script} }

// environment is what all images of packages have.
var environment = []string{"PATH=/usr/local/bin:/usr/bin:/usr/sbin", "LC_ALL=C.UTF-8", "HOME=/tmp"}

// packages is an image of Debian's essential packages and, in a layer each, others.
func packages(name string, stages ...string) maker {
	p := &images.Packages{
		Name: "bench/" + name + ":1", Folder: "image-bench-" + name + "-1", Stages: [][]string{{"?essential"}},
		Config: images.Config{"Env": environment},
	}
	for _, stage := range stages {
		p.Stages = append(p.Stages, []string{stage})
	}
	return func(ctx context.Context, cache, _ string, progress io.Writer) (*images.Image, error) {
		return p.Fetch(ctx, cache, progress)
	}
}

// generated is an image of a busybox and so many files of 1 to 8 KiB, ten folders of ten folders.
func generated(files int) maker {
	return func(ctx context.Context, cache, work string, _ io.Writer) (*images.Image, error) {
		busybox, err := engine.FindProgram(cache, "busybox")
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("files-%d", files)
		return images.Make(ctx, filepath.Join(work, name), "bench/"+name+":1",
			images.Config{"Env": []string{"PATH=/bin"}}, images.BusyboxLayer(busybox), smallFiles(files))
	}
}

func smallFiles(files int) images.Layer {
	return images.Archive(func(w *tar.Writer) error {
		random := rand.New(rand.NewPCG(1, 2))
		content := make([]byte, 8<<10)
		for n := range files {
			for i := range content {
				content[i] = byte(random.Uint32())
			}
			size := 1024 + random.IntN(7*1024)
			err := w.WriteHeader(&tar.Header{
				Name: fmt.Sprintf("files/%d/%d/f%d", n/10%10, n%10, n/100), Mode: 0o644, Size: int64(size),
				ModTime: time.Unix(1_600_000_000, 0),
			})
			if err == nil {
				_, err = w.Write(content[:size])
			}
			if err != nil {
				return errors.Join(fmt.Errorf("file %d", n), err)
			}
		}
		return nil
	})
}
