// Command versitygw is an S3 server over a directory, with the credentials of one administrator and of users in files.
//
// It is the gateway's own library without its command line, which brings the clients of every cloud and a test suite of
// sixty thousand lines: half of what there would be to compile. Secrets, address and certificate come from the
// environment, under the command line's names. It fails when the directory's file system has no extended attributes.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("versitygw: ")
	users := flag.String("iam-dir", "", "directory of the users' accounts; without it there is the administrator alone")
	versions := flag.String("versioning-dir", "", "directory of objects' older versions; without it there are none")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("name the directory of the buckets, and nothing else")
	}
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(stopped, flag.Arg(0), *users, *versions); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func serve(stopped context.Context, buckets, users, versions string) error {
	attributes := meta.XattrMeta{}
	if err := attributes.Test(buckets); err != nil {
		return err
	}
	files, err := posix.New(buckets, attributes, posix.PosixOpts{VersioningDir: versions, CopyObjectThreshold: 5 << 30})
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(stopped, files, &embedgw.Config{
		RootUserAccess:    os.Getenv("ROOT_ACCESS_KEY_ID"),
		RootUserSecret:    os.Getenv("ROOT_SECRET_ACCESS_KEY"),
		Region:            os.Getenv("VGW_REGION"),
		Ports:             []string{os.Getenv("VGW_PORT")},
		CertFile:          os.Getenv("VGW_CERT"),
		KeyFile:           os.Getenv("VGW_KEY"),
		HealthPath:        os.Getenv("VGW_HEALTH"),
		IAMDir:            users,
		IAMCacheTTL:       120,
		IAMCachePrune:     3600,
		MaxConnections:    250_000,
		MaxRequests:       100_000,
		MultipartMaxParts: 10_000,
		Quiet:             true,
	})
}
