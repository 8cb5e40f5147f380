"""The custom resources of `deepcoder.dev/v1alpha1` as types; the CRDs are generated from them."""
