from torch import Tensor

class Operators:
    """The operators of `torch.ops.cosegflow`. Masks are (B, H, W); beta is a tensor of one value or (B,).

    kernel_sigma 0 is no window. index and score are of size (0,) unless return_index or a window asks for them.
    precision is 0 (highest), 1 (high) or 2 (medium), for float32 on CUDA; portable leaves out the kernels of Hopper.
    """

    def warp(
        self, x: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros", simple: bool = False
    ) -> tuple[Tensor, Tensor]: ...
    def warp_backward(
        self,
        grad_out: Tensor,
        x: Tensor,
        flow: Tensor,
        mode: str,
        padding: str,
        need_x: bool,
        need_flow: bool,
        deterministic: bool,
        simple: bool = False,
    ) -> tuple[Tensor, Tensor]: ...
    def cycle_error(self, flow_ab: Tensor, flow_ba: Tensor, simple: bool = False) -> tuple[Tensor, Tensor]: ...
    def cycle_error_backward(
        self,
        grad_error: Tensor,
        flow_ab: Tensor,
        flow_ba: Tensor,
        need_ab: bool,
        need_ba: bool,
        deterministic: bool,
        simple: bool = False,
    ) -> tuple[Tensor, Tensor]: ...
    def correlation(
        self,
        fa: Tensor,
        fb: Tensor,
        normalize: bool = False,
        relu: bool = False,
        simple: bool = False,
        precision: int = 0,
        portable: bool = False,
    ) -> Tensor: ...
    def correlation_backward(
        self,
        grad_corr: Tensor,
        fa: Tensor,
        fb: Tensor,
        corr: Tensor | None,
        normalize: bool,
        relu: bool,
        simple: bool,
        need_fa: bool,
        need_fb: bool,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor]: ...
    def soft_argmax(
        self,
        corr: Tensor,
        mask_b: Tensor | None,
        beta: Tensor,
        simple: bool = False,
        kernel_sigma: float = 0.0,
        return_index: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
    def soft_argmax_backward(
        self,
        grad_flow: Tensor | None,
        grad_lse: Tensor | None,
        corr: Tensor,
        mask_b: Tensor | None,
        beta: Tensor,
        flow: Tensor,
        lse: Tensor,
        simple: bool,
        need_corr: bool,
        need_mask_b: bool,
        need_beta: bool,
        index: Tensor | None = None,
        kernel_sigma: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def match(
        self,
        fa: Tensor,
        fb: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        normalize: bool = True,
        simple: bool = False,
        kernel_sigma: float = 0.0,
        return_index: bool = False,
        precision: int = 0,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
    def match_backward(
        self,
        grad_flow: Tensor | None,
        grad_lse: Tensor | None,
        fa: Tensor,
        fb: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        flow: Tensor,
        lse: Tensor,
        normalize: bool,
        simple: bool,
        need_fa: bool,
        need_fb: bool,
        need_mask_b: bool,
        need_beta: bool,
        index: Tensor | None = None,
        kernel_sigma: float = 0.0,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
    def match_both(
        self,
        fa: Tensor,
        fb: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        normalize: bool = True,
        simple: bool = False,
        precision: int = 0,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]: ...
    def match_both_backward(
        self,
        grad_flow_ab: Tensor | None,
        grad_lse_ab: Tensor | None,
        grad_flow_ba: Tensor | None,
        grad_lse_ba: Tensor | None,
        fa: Tensor,
        fb: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        flow_ab: Tensor,
        lse_ab: Tensor,
        flow_ba: Tensor,
        lse_ba: Tensor,
        normalize: bool,
        simple: bool,
        need_fa: bool,
        need_fb: bool,
        need_mask_a: bool,
        need_mask_b: bool,
        need_beta: bool,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
    def local_correlation(
        self,
        fa: Tensor,
        fb: Tensor,
        flow: Tensor | None,
        radius: int,
        normalize: bool = False,
        simple: bool = False,
    ) -> Tensor: ...
    def local_correlation_backward(
        self,
        grad_out: Tensor,
        fa: Tensor,
        fb: Tensor,
        flow: Tensor | None,
        radius: int,
        normalize: bool,
        deterministic: bool,
        need_fa: bool,
        need_fb: bool,
        need_flow: bool,
        simple: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def transfer(
        self,
        fa: Tensor,
        fb: Tensor,
        values: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        normalize: bool = True,
        simple: bool = False,
        precision: int = 0,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor]: ...
    def transfer_backward(
        self,
        grad_out: Tensor,
        fa: Tensor,
        fb: Tensor,
        values: Tensor,
        mask_a: Tensor | None,
        mask_b: Tensor | None,
        beta: Tensor,
        out: Tensor,
        lse: Tensor,
        normalize: bool,
        simple: bool,
        need_fa: bool,
        need_fb: bool,
        need_values: bool,
        need_mask_b: bool,
        need_beta: bool,
        portable: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

operators: Operators
