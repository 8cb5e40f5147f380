// Command kube-router enforces NetworkPolicy on this node, with iptables and ipset.
//
// It is the firewall of kube-router alone: its routers, which nothing here uses, bring BGP, Docker's client and more, and
// make it the longest to build after Kubernetes. It ends when the API server does not list what there is in time, and is
// started again.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	config := options.NewKubeRouterConfig()
	config.RunFirewall, config.EnableIPv4 = true, true
	flag.StringVar(&config.Kubeconfig, "kubeconfig", "", "how to reach the API server, and as whom")
	flag.StringVar(&config.HostnameOverride, "hostname-override", "", "name of this node, if it is not its host name")
	flag.Func("service-cluster-ip-range", "addresses of Services", func(addresses string) error {
		config.ClusterIPCIDRs = []string{addresses}
		return nil
	})
	flag.Parse()
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := enforce(stopped, config); err != nil {
		klog.ErrorS(err, "NetworkPolicy is not enforced")
		klog.Flush()
		os.Exit(1)
	}
}

func enforce(stopped context.Context, config *options.KubeRouterConfig) error {
	connection, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(connection)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	factory.Start(stopped.Done())
	if err := known(stopped, factory, config); err != nil {
		return err
	}

	tables, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	var setting sync.Mutex
	controller, err := netpol.NewNetworkPolicyController(
		client, config, pods, policies, namespaces, &setting, tables, sets)
	if err != nil {
		return err
	}
	for _, of := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{pods, controller.PodEventHandler},
		{namespaces, controller.NamespaceEventHandler},
		{policies, controller.NetworkPolicyEventHandler},
	} {
		if _, err := of.informer.AddEventHandler(of.handler); err != nil {
			return err
		}
	}

	health, err := healthcheck.NewHealthController(config)
	if err != nil {
		return err
	}
	health.SetAlive()
	heartbeats := make(chan *healthcheck.ControllerHeartbeat, 10)
	var running sync.WaitGroup
	running.Add(2)
	go health.RunCheck(heartbeats, stopped.Done(), &running) // which takes them, and logs when they do not come
	go controller.Run(heartbeats, stopped.Done(), &running)
	running.Wait()
	return nil
}

// known waits until all there is has been read, for as long as the configuration allows.
func known(stopped context.Context, factory informers.SharedInformerFactory, config *options.KubeRouterConfig) error {
	waited, done := context.WithTimeout(stopped, config.CacheSyncTimeout)
	defer done()
	for kind, read := range factory.WaitForCacheSync(waited.Done()) {
		if !read {
			return fmt.Errorf("the API server did not list every %v within %s", kind, config.CacheSyncTimeout)
		}
	}
	return nil
}
