"""What each step of the lineage is: its idea, its equations, what it solved and what it left open.

The page of a lineage and docs/lineage.md say the same, word for word: from here. In the equations
x0 is the picture, eps noise, t the time, c the condition; alpha and sigma say how much of each is
in x_t.
"""
from __future__ import annotations

from typing import NamedTuple


class Idea(NamedTuple):
    """A step of the lineage.

    Attributes:
      title: what it did, in some words.
      idea: in two sentences.
      first: the number of the first equation.
      equations: two, as text.
      solved, left_open: what came with it, and what the next steps had to do.
      paper: authors and number.
    """

    title: str
    idea: str
    first: int
    equations: tuple[str, str]
    solved: str
    left_open: str
    paper: str


IDEAS = {
    "dalle": Idea(
        "pictures as words",
        "A discrete VAE writes a picture as a grid of words from a small dictionary. A transformer "
        "that has read texts followed by such words continues a text with a picture.",
        1,
        (
            "z = argmax_k q(k | x),   x' = decoder(z)",
            "p(text, z) = prod_i p(token_i | token_<i)",
        ),
        "One model, trained on pairs from the web, that draws what a sentence says: no classes, no "
        "per-domain design.",
        "Tokens are drawn one by one and never corrected; the discrete code loses detail; a "
        "caption is followed only after the best of many is chosen by a CLIP.",
        "Ramesh et al., 2102.12092",
    ),
    "clip": Idea(
        "one space for pictures and texts",
        "Two networks, one for pictures and one for texts, place both in one space. They are "
        "trained to place what belongs together near each other, and all else in a batch apart.",
        3,
        (
            "I = f(x) / |f(x)|,   T = g(y) / |g(y)|",
            "loss = cross entropy of exp(s) I_i . T_j along rows and columns",
        ),
        "A measure of whether a picture shows a text, learned from pairs alone; it judges, "
        "searches, classifies without training, and guides.",
        "It makes nothing. What it cannot tell apart (counts, places) nothing that it judges will "
        "learn.",
        "Radford et al., 2103.00020",
    ),
    "adm": Idea(
        "noise, taken away step by step",
        "A network learns to tell the noise in a noised picture, and sampling takes away a little "
        "of it at a time. The gradient of a classifier of noised pictures moves each step towards "
        "a class.",
        5,
        (
            "x_t = alpha x0 + sigma eps,    loss = |F(x_t, t) - eps|^2",
            "x_s ~ N(mean + variance grad log p(c | x_t), variance)",
        ),
        "Stable training, all modes of the data, and with a UNet that attends and a classifier's "
        "gradient better pictures than GANs.",
        "Hundreds of steps over all pixels; a second network that is trained on noise; only "
        "classes, no texts.",
        "Ho et al., 2006.11239; Dhariwal & Nichol, 2105.05233",
    ),
    "glide": Idea(
        "the model guides itself",
        "A transformer reads the caption, and the UNet attends to what it made of it. The model "
        "has learned to do without a caption as well, and the difference between both says which "
        "way is towards the text.",
        7,
        (
            "guided = F(x, null) + w (F(x, c) - F(x, null))",
            "c = transformer(text), dropped now and then in training",
        ),
        "Guidance without a second network, by texts; w trades variety for obedience after "
        "training. Inpainting by the same model.",
        "Pixels at 64 and an upsampler; twice the calls; at high w colours burn and pictures grow "
        "alike.",
        "Ho & Salimans, 2207.12598; Nichol et al., 2112.10741",
    ),
    "ldm": Idea(
        "first small, then again large",
        "An autoencoder, trained first and alone, makes a picture small without losing what the "
        "eye sees. The diffusion model works on what it makes, and its decoder brings the pixels "
        "back at the end.",
        9,
        (
            "z = encoder(x),   x' = decoder(z),   loss = |x - x'| + LPIPS + KL + GAN",
            "the diffusion of (5) in z, under cross-attention to a text",
        ),
        "A forty-eighth of the numbers for the same picture of 512 pixels: sampling, and some "
        "training, on one accelerator.",
        "Two stages whose errors add; small faces and letters that the decoder cannot draw; the "
        "UNet does not scale as a transformer does.",
        "Rombach et al., 2112.10752",
    ),
    "unclip": Idea(
        "first what, then how it looks",
        "A prior makes of the caption the CLIP embedding of a picture that it could belong to. A "
        "decoder turns CLIP's encoder around: it makes pictures that have this embedding.",
        11,
        (
            "y ~ p(image embedding | text)",
            "x ~ p(picture | y, text)",
        ),
        "Variety at high guidance; pictures can be varied, mixed and moved along a text, since y "
        "is a point between them.",
        "What CLIP's embedding drops is lost: which attribute belongs to which thing, letters. "
        "Three networks in a row.",
        "Ramesh et al., 2204.06125",
    ),
    "dit": Idea(
        "a transformer in place of the UNet",
        "A picture, or its latents, is cut into patches, and a plain transformer predicts the "
        "noise in them. Time and class scale and shift its layers, and gates that begin closed "
        "let each block do nothing at first.",
        13,
        (
            "z = z + gate attention((1 + scale) norm(z) + shift)",
            "shift, scale, gate = W silu(MLP(t) + c),    W = 0 at first",
        ),
        "One plain block, and quality that follows from compute alone: more of it, better "
        "pictures, without a new design.",
        "Every token attends to every other; millions of steps to the best figure; only classes.",
        "Peebles & Xie, 2212.09748",
    ),
    "edm": Idea(
        "what belongs together, taken apart",
        "Whatever a network predicts, four scalars of the noise level make a denoiser of it. With "
        "these chosen for unit variance everywhere, schedule, loss, network and solver can each be "
        "chosen for itself.",
        15,
        (
            "x0 = skip x + out F(in x, ln(sigma) / 4)",
            "dx/dsigma = (x - x0) / sigma,   by Heun",
        ),
        "Noise schedule, network, loss and sampler are independent choices; with the right ones "
        "tens of steps are enough.",
        "Training dynamics: weights and activations grow, and the length of the average is a "
        "guess.",
        "Karras et al., 2206.00364",
    ),
    "diffit": Idea(
        "time steers attention",
        "Queries, keys and values are made of the time as well as of the picture. So the "
        "transformer looks at coarse things in noise and at details near the end, with the same "
        "weights.",
        17,
        (
            "[q, k, v] = W_s z + W_t t",
            "attention = softmax(q k^T / sqrt(d) + B) v",
        ),
        "Which tokens look at which may change from noise to detail; FID 1.73 on ImageNet 256, its "
        "authors report, with a sixth fewer parameters than DiT-XL/2.",
        "A table of offsets fixes one size of picture; neither sizes nor training of the "
        "image-space model are public.",
        "Hatamizadeh et al., 2312.02139",
    ),
    "cads": Idea(
        "guidance without sameness",
        "Noise is added to the condition itself, much at the beginning of sampling and none at "
        "the end. So pictures of one class begin in different places, and a high scale of "
        "guidance no longer makes them alike.",
        19,
        (
            "y' = sqrt(gamma(t)) y + s sqrt(1 - gamma(t)) n",
            "guided' = phi guided std(c) / std(guided) + (1 - phi) guided",
        ),
        "High guidance with variety, (19), and without burnt colours, (20), on any trained model: "
        "nothing is trained.",
        "Numbers to be chosen for each model; both mend what guidance breaks instead of guiding "
        "otherwise.",
        "Sadat et al., 2310.17347; Lin et al., 2305.08891",
    ),
    "edm2": Idea(
        "training that keeps its measure",
        "Every layer is rewritten so that neither weights nor activations can grow, and the "
        "length of the average of the weights is chosen after training. A weaker model of the "
        "same kind shows which way is wrong, and guides better than the null condition.",
        21,
        (
            "w = normalize(w),   sum(a, b, t) = ((1 - t) a + t b) / |(1 - t, t)|",
            "average of any length = sum_i x_i snapshot_i,    A x = b",
        ),
        "Magnitudes do not grow, so no layer has to normalise them; the length of the average is "
        "chosen afterwards; a weaker model of the same kind guides better than no class at all.",
        "Classes and latents of ImageNet: texts, flows and few steps came elsewhere.",
        "Karras et al., 2312.02696, 2406.02507",
    ),
    "mmdit": Idea(
        "texts and pictures in one stream, along straight lines",
        "Tokens of the text and of the picture have weights of their own and attend to each other "
        "as one sequence. The path from noise to picture is a straight line, and the network "
        "predicts its direction.",
        23,
        (
            "x_t = (1 - t) x0 + t eps,    loss = |F(x_t, t) - (eps - x0)|^2",
            "[q, k, v] = [text W_1; picture W_2],    one attention for both",
        ),
        "Long texts, and letters in pictures; the network scales as DiT does, under texts.",
        "Three text encoders, together larger than the medium model; steps still in tens.",
        "Esser et al., 2403.03206",
    ),
}
"""By the key of a stage, in the order of the papers' ideas in docs/lineage.md."""
